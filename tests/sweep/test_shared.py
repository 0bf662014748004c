"""Which runs share what, in which order they are trained, and what fits into a time."""

from collections import defaultdict
from collections.abc import Callable

import pytest
from conftest import REPOSITORY, TINY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from phaseavg.config import check
from phaseavg.errors import UserError
from phaseavg.sweep.budget import Bundle, Work, affordable, bundles, by_seed, seconds_of
from phaseavg.sweep.budget import in_words as budget_in_words
from phaseavg.sweep.cells import Cell, Run
from phaseavg.sweep.shared import Tree, Wave, arranged

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def run_of() -> MakeRun:
    """Return a function from schedule, averaging, seed and cells to a run; the rest is the same."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        base = check(compose("config", list(TINY)))
        parts = {
            name: check(compose("config", [*TINY, f"averaging={name}"])).averaging
            for name in ("none", "phasewise", "end", "rna")
        }

    def made(epochs: list[int], averaging: str, seed: int = 0, *cells: tuple[str, str]) -> Run:
        factors = [1.0, 0.1, 0.01][: len(epochs)]
        schedule = {**base.schedule, "epochs": epochs, "factors": factors}
        update = {"schedule": schedule, "averaging": parts[averaging], "seed": seed}
        settings = base.model_copy(update=update)
        in_tables = [Cell(table, "digits", "cnn13_digits", column, ()) for table, column in cells]
        return Run([f"{averaging} {epochs} {seed}"], settings, in_tables)

    return made


def by_id(*runs: Run) -> dict[str, Run]:
    return {run.settings.run_id: run for run in runs}


def in_words(waves: list[Wave]) -> list[tuple[list[list[int]], list[str]]]:
    return [
        ([trunk.points for trunk, _ in wave.trunks], sorted(run.overrides[0] for run in wave.runs))
        for wave in waves
    ]


def test_no_run_starts_before_its_prefix_is_there(run_of: MakeRun) -> None:
    runs = [
        run_of([6, 3, 3], "phasewise"),
        run_of([8, 4, 4], "none"),
        run_of([8, 4, 4], "end"),
        run_of([8, 4, 4], "phasewise"),
        run_of([10, 5, 5], "phasewise"),
        run_of([10, 5, 5], "none"),
        run_of([8, 4, 4], "none", 1),
    ]
    waves = arranged(runs, {}, {})
    assert in_words(waves) == [
        ([[6, 8, 10]], ["none [8, 4, 4] 1"]),
        ([[16]], [f"{a} {e} 0" for a, e in [
            ("none", "[10, 5, 5]"),
            ("phasewise", "[10, 5, 5]"),
            ("phasewise", "[6, 3, 3]"),
            ("phasewise", "[8, 4, 4]"),
        ]]),
        ([], ["end [8, 4, 4] 0", "none [8, 4, 4] 0"]),
    ]  # fmt: skip
    ((trunk, overrides),) = waves[0].trunks
    assert overrides == ["none [10, 5, 5] 0"]  # a run on it that has no average of its own
    assert sorted((c.epochs[0], c.until) for c in trunk.carry) == [(6, 6), (8, 8), (8, 8), (10, 10)]


def test_a_run_that_has_gone_on_needs_nothing(run_of: MakeRun) -> None:
    runs = [run_of([2, 1], "none"), run_of([2, 1], "phasewise"), run_of([2, 1], "rna")]
    ids = [run.settings.run_id for run in runs]
    waves = arranged(runs, {}, {ids[0]: 1, ids[1]: 2, ids[2]: 3})
    assert in_words(waves) == [
        ([[2]], ["phasewise [2, 1] 0", "rna [2, 1] 0"]),
        ([], ["none [2, 1] 0"]),
    ]
    assert in_words(arranged(runs, {}, dict.fromkeys(ids, 3)))[0][0] == []
    assert in_words(arranged([], {}, {})) == [([], [])]


def test_others_are_carried_for_and_not_trained(run_of: MakeRun) -> None:
    own = run_of([4, 1], "phasewise")
    others = by_id(run_of([2, 1], "rna"), run_of([4, 1], "end"), run_of([6, 1], "phasewise"))
    waves = arranged([own], others, {})
    assert in_words(waves) == [([[2, 4]], []), ([], ["phasewise [4, 1] 0"])]
    ((trunk, _),) = waves[0].trunks
    # To 4 and not to 6: nobody has asked for that, but its average is carried so far.
    assert sorted((c.epochs, c.until) for c in trunk.carry) == [
        ([2, 1], 2),
        ([4, 1], 4),
        ([4, 1], 4),
        ([6, 1], 4),
    ]
    assert in_words(arranged([own], {}, {})) == [([], ["phasewise [4, 1] 0"])]


BUDGETS = [
    ("90s", 90),
    ("25m", 1500),
    ("2h", 7200),
    ("1h30m", 5400),
    ("0.5h", 1800),
    ("1h5s", 3605),
]


@pytest.mark.parametrize(("budget", "seconds"), BUDGETS)
def test_a_budget_is_a_time(budget: str, seconds: float) -> None:
    assert seconds_of(budget) == seconds


def test_a_time_is_told_in_the_unit_that_one_reads() -> None:
    spans = {119: "119 s", 120: "2 min", 7199: "120 min", 7200: "2.0 h", 345_600: "4.0 days"}
    assert {seconds: budget_in_words(seconds) for seconds in spans} == spans


@pytest.mark.parametrize("budget", [25, "25", "m", "25 m", "soon", "-5m", "5m5"])
def test_what_is_no_time_is_told(budget: str | int) -> None:
    with pytest.raises(UserError, match=f"budget={budget}: is no time; write 90s, 25m, 2h or"):
        seconds_of(budget)


def test_work_counts_what_is_shared_once_and_what_is_done_not(run_of: MakeRun) -> None:
    runs = by_id(run_of([8, 4], "none"), run_of([8, 4], "end"), run_of([8, 4], "phasewise"))
    none, end, ours = runs
    work = Work(runs, {}, shared=True)
    assert work.epochs([none]) == work.epochs([none, end]) == 12
    assert work.epochs(runs) == 16
    assert Work(runs, {}, shared=False).epochs(runs) == 36
    done = {none: 10, end: 8, ours: 8}
    assert Work(runs, done, shared=True).epochs(runs) == 4 + 4  # of `end`, which has less to go on
    assert Work(runs, done, shared=False).epochs(runs) == 2 + 4 + 4


def test_pairs_that_a_claim_compares_are_bundles(run_of: MakeRun) -> None:
    """C3 compares 1b's columns, C5 decayed with phase-wise; the last cell is in no pair."""
    runs = by_id(
        *(run_of([8, 4], "none", seed, ("1b", "80-40-40-sgd"), ("1c", "no")) for seed in (0, 1)),
        *(run_of([8, 4], "phasewise", seed, ("1b", "80-40-40-ours")) for seed in (0, 1)),
        run_of([8], "none", 0, ("1d", "decayed")),
        run_of([9], "none", 0, ("mine", "column")),
        run_of([7], "none", 0),
    )
    ids = list(runs)
    found = bundles(runs)
    assert (
        set(found)
        == {
            Bundle(frozenset(ids[:4]), 2),
            Bundle(frozenset(ids[:2]), 1),  # 1c's "no" alone
            Bundle(frozenset(ids[4:5]), 1),
            Bundle(frozenset(ids[5:6]), 1),
            Bundle(frozenset(ids[6:7]), 1),
        }
    )
    assert by_seed(found[0], runs) == [
        Bundle(frozenset({ids[0], ids[2]}), 2),
        Bundle(frozenset({ids[1], ids[3]}), 2),
    ]


def test_the_cheapest_way_to_complete_cells_comes_first(run_of: MakeRun) -> None:
    """By hand, an epoch a second: the pair costs 12 for two cells, the other 9 for one."""
    sgd, ours = ("1b", "80-40-40-sgd"), ("1b", "80-40-40-ours")
    runs = by_id(
        run_of([9], "none", 2, ("mine", "column")),
        *(run_of([4, 4], "none", seed, sgd) for seed in (0, 1)),
        *(run_of([4, 4], "phasewise", seed, ours) for seed in (0, 1)),
    )
    other, none0, none1, ours0, ours1 = runs
    work = Work(runs, {}, shared=True)

    def within(seconds: float) -> tuple[set[str], float]:
        found = affordable(runs, work, lambda _: 1.0, seconds)
        chosen = [run_id for run_ids, _ in found for run_id in run_ids]
        assert len(chosen) == len(set(chosen))
        return set(chosen), sum(cost for _, cost in found)

    everything = {other, none0, none1, ours0, ours1}
    assert within(100) == (everything, 9 + 2 * 12)
    assert within(24) == ({other, none0, ours0}, 9 + 12)  # the pair of both seeds does not fit
    assert within(23) == ({other, none0, ours0}, 9 + 12)
    assert within(20) == ({other}, 9)
    assert within(8) == (set(), 0)
    # The pair is the cheaper one where its cells need less: half of it is there.
    done = {none0: 8, ours0: 8}
    pair = sorted([none0, none1, ours0, ours1])
    assert affordable(runs, Work(runs, done, shared=True), lambda _: 1.0, 12) == [(pair, 12)]
    assert affordable(runs, work, lambda _: 2.0, 20) == [([other], 18)]
    assert affordable({}, Work({}, {}, shared=True), lambda _: 1.0, 20) == []


def test_a_tree_counts_only_what_is_known_before_training(run_of: MakeRun) -> None:
    run = run_of([2, 1], "none")
    unknown = {"_target_": "phaseavg.averaging.Averager"}
    settings = run.settings.model_copy(update={"averaging": unknown})
    runs = by_id(run, Run([], settings))
    tree = Tree(runs)
    assert [tree.leaves_at(run_id) for run_id in runs] == [None, None]
    assert Work(runs, {settings.run_id: 1}, shared=True).epochs(runs) == 3 + 2


def test_nodes_are_kept_apart_by_seed(run_of: MakeRun) -> None:
    tree = Tree(by_id(*(run_of([2, 1], "none", seed) for seed in (0, 1))))
    ends = defaultdict(int)
    for (epoch, _), passing in tree.passing.items():
        ends[epoch] += len(passing)
    assert ends == {2: 2, 3: 2}
    assert all(len(passing) == 1 for passing in tree.passing.values())
