"""Randomness as a function of (seed, stream, index)."""

from phaseavg.randomness import seed_for


def test_the_seed_depends_on_each_argument():
    arguments = [
        (seed, stream, index) for seed in range(3) for stream in "ab" for index in range(3)
    ]
    arguments += [(11, "a", 1), (1, "a", 11), (1, "1/a", 1), (11, "a1", 1)]
    assert len({seed_for(*each) for each in arguments}) == len(arguments)


def test_seeds_are_stable():
    # A change would change the numbers of every run, even in the middle of a resumed run.
    assert seed_for(0, "train") == 3168021335108090602
    assert seed_for(1, "order", 7) == 5568122274206039363
