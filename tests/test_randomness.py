"""Randomness as a function of (seed, stream, index)."""

import numpy as np

from phaseavg.randomness import generator, seed_for


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


def test_a_generator_does_not_depend_on_global_state():
    expected = generator(0, "train", 5).random(10)
    other = generator(0, "train", 6)
    np.random.seed(1)  # noqa: NPY002
    found = generator(0, "train", 5)
    first = found.random(5)
    assert not np.array_equal(other.random(10), expected)
    np.testing.assert_array_equal([*first, *found.random(5)], expected)


def test_streams_differ():
    drawn = {
        tuple(generator(*each).random(4))
        for each in ((0, "train", 0), (1, "train", 0), (0, "batchnorm", 0), (0, "train", 1))
    }
    assert len(drawn) == 4
