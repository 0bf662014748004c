"""Shared prefixes, and the training order of runs."""

from collections.abc import Callable

import pytest
from conftest import TINY, composed
from made_cells import NETWORKS

from phaseavg.config import check
from phaseavg.identity import part_names
from phaseavg.runs.prefixes import OWN
from phaseavg.sweep.cells import Cell, Run
from phaseavg.sweep.order import Job, arrange_jobs, prefix_nodes, prefix_run
from phaseavg.sweep.plan import shared_epochs

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def new_run() -> MakeRun:
    """Return a function that makes a run from a schedule, an averaging and a seed."""

    def make(epochs: list[int], averaging: str, seed: int = 0) -> Run:
        factors = [1.0, 0.1, 0.01][: len(epochs)]
        base = check(composed(*TINY, f"averaging={averaging}").copy())
        schedule = {**base.schedule, "epochs": epochs, "factors": factors}
        lists = (f"schedule.epochs={epochs}", f"schedule.factors={factors}")
        overrides = [*TINY, *lists, f"averaging={averaging}", f"seed={seed}"]
        return Run(overrides, base.model_copy(update={"schedule": schedule, "seed": seed}))

    return make


def describe(jobs: list[Job]) -> list[tuple[str, int, list[int]]]:
    """Return the name, the start epoch and the saved prefixes of each job."""
    return [
        (
            f"{job.run.settings.run_id.split('-')[3]} "
            + "-".join(map(str, job.run.prefixes.schedule.epochs)),
            job.start,
            sorted(job.keep),
        )
        for job in jobs
    ]


def assert_served(jobs: list[Job]) -> None:
    """Check that an earlier job saves each job's prefix, with all averages that it needs."""
    for number, job in enumerate(jobs):
        if job.parent is None:
            continue
        assert job.parent in jobs[:number]
        assert job.start in job.parent.keep
        own = {n: a for n, a in job.parent.run.prefixes.averages.items() if n != OWN}
        offered = [average.identity(job.start) for average in own.values()]
        offered += [
            a.identity(job.start) for a, until in job.parent.guests.values() if until >= job.start
        ]
        needed = set(job.run.prefixes.needs(job.start).values())
        needed |= {a.identity(job.start) for a, _ in job.guests.values()} - {None}
        assert needed <= set(offered)
        assert job.run.prefixes.key(job.start) == job.parent.run.prefixes.key(job.start)


def test_the_sgd_run_trains_the_prefix_of_the_others(new_run: MakeRun) -> None:
    runs = [new_run([8, 4, 4], name) for name in ("phasewise", "none", "end", "rna")]
    jobs = arrange_jobs(runs)
    assert_served(jobs)
    assert describe(jobs) == [
        ("noaveraging 8-4-4", 0, [8, 16]),
        ("phasewise 8-4-4", 8, []),
        ("atend 8-4-4", 16, []),
        ("phasewise_rna 8-4-4", 8, []),
    ]
    assert sum(job.epochs for job in jobs) == 16 + 8 + 8


def test_without_an_sgd_run_a_separate_run_trains_the_prefix(new_run: MakeRun) -> None:
    jobs = arrange_jobs([new_run([8, 4, 4], name) for name in ("phasewise", "rna")])
    assert_served(jobs)
    prefix, *rest = describe(jobs)
    assert prefix == ("noaveraging 8", 0, [8])
    assert [start for _, start, _ in rest] == [8, 8]


def test_a_prefix_starts_from_another_prefix(new_run: MakeRun) -> None:
    """100-50-50 → 80-40-40 at epoch 80 → averaging at the end at epoch 160."""
    lengths = ([10, 5, 5], [8, 4, 4])
    runs = [new_run(epochs, name) for epochs in lengths for name in ("none", "phasewise")]
    jobs = arrange_jobs([*runs, new_run([8, 4, 4], "end")])
    assert_served(jobs)
    assert describe(jobs) == [
        ("noaveraging 10-5-5", 0, [8, 10]),
        ("noaveraging 8-4-4", 8, [16]),
        ("phasewise 10-5-5", 10, []),
        ("phasewise 8-4-4", 8, []),
        ("atend 8-4-4", 16, []),
    ]
    assert [job.level for job in jobs] == [0, 1, 1, 1, 2]


def test_runs_without_shared_prefixes_keep_the_users_order(new_run: MakeRun) -> None:
    runs = [new_run([8, 4, 4], "phasewise", seed) for seed in (2, 0, 1)]
    jobs = arrange_jobs(runs)
    assert [job.run for job in jobs] == runs
    assert all(job.parent is None and not job.keep for job in jobs)


def test_saved_epochs_are_not_trained_again(new_run: MakeRun) -> None:
    runs = [new_run([8, 4, 4], name) for name in ("none", "phasewise", "rna")]
    sgd = runs[0].settings.run_id
    jobs = arrange_jobs(runs, {sgd: 12}, lambda settings, node, needs: node[0] == 8)
    assert [(job.start, job.parent) for job in jobs] == [(12, None), (8, None), (8, None)]
    # The SGD run is past epoch 8, so a separate run trains this prefix.
    jobs = arrange_jobs(runs, {sgd: 12})
    assert_served(jobs)
    assert [name for name, _, _ in describe(jobs)][:2] == ["noaveraging 8-4-4", "noaveraging 8"]


@pytest.mark.parametrize("sgd", [True, False])
def test_a_saved_prefix_without_the_averages_of_new_runs_is_trained_again(
    new_run: MakeRun, sgd: bool
) -> None:
    runs = [new_run(epochs, "phasewise") for epochs in ([10, 5, 5], [8, 4, 4])]
    runs += [new_run([10, 5, 5], "rna"), *([new_run([10, 5, 5], "none")] if sgd else [])]
    jobs = arrange_jobs(runs, stored=lambda settings, node, needs: not needs and node[0] <= 10)
    assert_served(jobs)
    first, *rest = describe(jobs)
    assert first == (f"noaveraging {'10-5-5' if sgd else '10'}", 0, [8, 10])
    assert [start for _, start, _ in rest] == [10, 8, 10]
    # A run without averaging starts from it, if the others have theirs.
    runs = [new_run([8, 4, 4], name) for name in ("none", "phasewise", "rna")]
    jobs = arrange_jobs(runs, stored=lambda settings, node, needs: node[0] == 8)
    assert describe(jobs) == [
        ("noaveraging 8-4-4", 8, []),
        ("phasewise 8-4-4", 8, []),
        ("phasewise_rna 8-4-4", 8, []),
    ]


def test_the_overrides_of_a_prefix_define_its_run(new_run: MakeRun) -> None:
    run = new_run([8, 4, 4], "rna")
    (node, *_) = prefix_nodes([run])[run.run_id]
    prefix = prefix_run(run, node)
    assert prefix is not None
    assert check(composed(*prefix.overrides)).recipe() == prefix.settings.recipe()


def test_shared_epochs_are_counted_once(new_run: MakeRun) -> None:
    """SGD for 2 + 3 epochs, averaging at the end, averaging after 2, and an unrelated run."""
    runs = [new_run([2, 3], "none"), new_run([2, 3], "end"), new_run([2, 1], "phasewise")]
    runs += [new_run([3, 1], "none", seed) for seed in (0, 1)]
    assert shared_epochs(runs) == 5 + 1 + 2 + 4


def test_shared_epochs_of_cells_match_a_count_by_hand(all_runs: dict[str, Run]) -> None:
    def different(wanted: Callable[[Cell, int], bool]) -> int:
        return shared_epochs(
            run
            for run in all_runs.values()
            if any(wanted(cell, run.settings.seed) for cell in run.cells)
        )

    def own(cell: Cell, dataset: str) -> bool:
        return (cell.dataset, cell.model) == (dataset, "cnn13")

    assert different(lambda c, s: c.table.startswith("t1") and (c.model, s) == ("cnn13", 1)) == 1460
    # By hand: 1,460 + 3 · 240 of the adaptive methods per network and seed of CIFAR-100; of the two
    # other data sets SGD's 160, our method's 80, Lookahead's 160, and the same 720.
    assert different(lambda c, _: own(c, "cifar100")) == 3 * (1460 + 720)
    assert different(lambda c, _: own(c, "svhn")) == 3 * (160 + 80 + 160 + 720)
    assert 4 * different(lambda c, _: c.model == "cnn13") == 53_040
    merged = [run for run in all_runs.values() if run.cells[0].model == "cnn13"]
    assert 4 * sum(run.epochs for run in merged) == 97_920
    # Networks share no epochs.
    apart = sum(different(lambda c, _, m=m: c.model == m) for m in NETWORKS)
    assert different(lambda c, _: c.model in NETWORKS) == apart


SHARED = {
    ("sgd", 60): "t1b/60-30-30-ours",
    ("sgd", 80): "t1a/gamma0-0.5 t1a/gamma0-0.8 t1a/gamma0-0.9 t1a/gamma0-0.95 t1a/gamma0-0.99 "
    "t1a/learnt t1b/80-40-40-ours t1c/phase-wise t2/ours t3/sgd-ours",
    ("sgd", 100): "t1b/100-50-50-ours",
    ("sgd", 160): "t1c/at-the-end",
    **{(a, 80): f"t3/{a}-ours t4/{a}" for a in ("adam", "amsgrad", "adabound")},
}
"""The cells that start from their network's SGD or adaptive run, by epoch."""


def test_shared_prefixes_of_tables_1_to_4(all_runs: dict[str, Run]) -> None:
    own = ("cifar100", "cnn13")
    runs = [
        run
        for run in all_runs.values()
        if run.settings.seed == 0 and (run.cells[0].dataset, run.cells[0].model) == own
    ]
    jobs = arrange_jobs(runs)
    assert {job.run.run_id for job in jobs} == {run.run_id for run in runs}  # no other prefix
    found: dict[tuple[str, int], list[str]] = {}
    for job in jobs:
        if job.parent and not job.run.prefixes.averages_nothing:
            optimizer = part_names(job.run.settings.recipe())["optimizer"].replace("adam_", "")
            cells = found.setdefault((optimizer, job.start), [])
            cells.extend(f"{cell.table}/{cell.column}" for cell in job.run.cells)
    assert {place: " ".join(sorted(cells)) for place, cells in found.items()} == SHARED
