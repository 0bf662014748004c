"""Which runs share which prefixes, and in which order they are trained."""

from collections.abc import Callable

import pytest
from conftest import REPOSITORY, TINY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from made_cells import WHOLE

from phaseavg.config import check
from phaseavg.identity import part_names
from phaseavg.runs.prefixes import OWN
from phaseavg.sweep.cells import Cell, Run
from phaseavg.sweep.order import Job, arranged, ending_with, nodes_of
from phaseavg.sweep.plan import epochs_of

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def run_of() -> MakeRun:
    """Return a function from schedule, averaging and seed to a run; the rest is the same."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        parts = {
            name: check(compose("config", [*TINY, f"averaging={name}"])).averaging
            for name in ("none", "phasewise", "end", "rna")
        }
        base = check(compose("config", list(TINY)))

    def made(epochs: list[int], averaging: str, seed: int = 0) -> Run:
        factors = [1.0, 0.1, 0.01][: len(epochs)]
        schedule = {**base.schedule, "epochs": epochs, "factors": factors}
        update = {"schedule": schedule, "averaging": parts[averaging], "seed": seed}
        lists = (f"schedule.epochs={epochs}", f"schedule.factors={factors}")
        overrides = [*TINY, *lists, f"averaging={averaging}", f"seed={seed}"]
        return Run(overrides, base.model_copy(update=update))

    return made


def described(jobs: list[Job]) -> list[tuple[str, int, list[int]]]:
    """Return of each job the run's name, the epoch that it starts from, and what it keeps."""
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
    """Check that each job's prefix is kept by an earlier job, with every average it needs."""
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


def test_the_sgd_run_of_a_sweep_is_the_prefix_of_the_others(run_of: MakeRun) -> None:
    runs = [run_of([8, 4, 4], name) for name in ("phasewise", "none", "end", "rna")]
    jobs = arranged(runs)
    assert_served(jobs)
    assert described(jobs) == [
        ("noaveraging 8-4-4", 0, [8, 16]),
        ("phasewise 8-4-4", 8, []),
        ("atend 8-4-4", 16, []),
        ("phasewise_rna 8-4-4", 8, []),
    ]
    assert sum(job.epochs for job in jobs) == 16 + 8 + 8


def test_without_an_sgd_run_a_prefix_is_trained_by_itself(run_of: MakeRun) -> None:
    jobs = arranged([run_of([8, 4, 4], name) for name in ("phasewise", "rna")])
    assert_served(jobs)
    prefix, *rest = described(jobs)
    assert prefix == ("noaveraging 8", 0, [8])
    assert [start for _, start, _ in rest] == [8, 8]


def test_a_prefix_starts_from_another_prefix(run_of: MakeRun) -> None:
    """100-50-50 → 80-40-40 at epoch 80 → averaging at the end at epoch 160."""
    lengths = ([10, 5, 5], [8, 4, 4])
    runs = [run_of(epochs, name) for epochs in lengths for name in ("none", "phasewise")]
    jobs = arranged([*runs, run_of([8, 4, 4], "end")])
    assert_served(jobs)
    assert described(jobs) == [
        ("noaveraging 10-5-5", 0, [8, 10]),
        ("noaveraging 8-4-4", 8, [16]),
        ("phasewise 10-5-5", 10, []),
        ("phasewise 8-4-4", 8, []),
        ("atend 8-4-4", 16, []),
    ]
    assert [job.level for job in jobs] == [0, 1, 1, 1, 2]


def test_a_run_that_shares_nothing_is_trained_alone_in_the_users_order(run_of: MakeRun) -> None:
    runs = [run_of([8, 4, 4], "phasewise", seed) for seed in (2, 0, 1)]
    jobs = arranged(runs)
    assert [job.run for job in jobs] == runs
    assert all(job.parent is None and not job.keep for job in jobs)


def test_what_a_run_or_the_disk_already_has_is_not_trained_again(run_of: MakeRun) -> None:
    runs = [run_of([8, 4, 4], name) for name in ("none", "phasewise", "rna")]
    sgd = runs[0].settings.run_id
    jobs = arranged(runs, {sgd: 12}, lambda settings, node, needs: node[0] == 8)
    assert [(job.start, job.parent) for job in jobs] == [(12, None), (8, None), (8, None)]
    # What the SGD run can no longer keep is trained by a prefix of its own.
    jobs = arranged(runs, {sgd: 12})
    assert_served(jobs)
    assert [name for name, _, _ in described(jobs)][:2] == ["noaveraging 8-4-4", "noaveraging 8"]


def test_the_overrides_of_a_prefix_make_its_run(run_of: MakeRun) -> None:
    run = run_of([8, 4, 4], "rna")
    (node, *_) = nodes_of([run])[run.run_id]
    prefix = ending_with(run, node)
    assert prefix is not None
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        composed = check(compose("config", prefix.overrides))
    assert composed.run_id == prefix.settings.run_id
    assert composed.recipe() == prefix.settings.recipe()


def test_epochs_are_counted_once_by_hand(run_of: MakeRun) -> None:
    """SGD of 2 + 3 epochs, an average at its end, one that leaves after 2, and a stranger."""
    runs = [run_of([2, 3], "none"), run_of([2, 3], "end"), run_of([2, 1], "phasewise")]
    assert epochs_of([*runs, run_of([3, 1], "none"), run_of([3, 1], "none", 1)]) == 5 + 1 + 2 + 4


def test_epochs_that_cells_have_in_common_are_counted_by_their_keys(
    all_runs: dict[str, Run],
) -> None:
    def different(wanted: Callable[[Cell, int], bool]) -> int:
        return epochs_of(
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
    # Networks have nothing in common.
    apart = sum(different(lambda c, _, m=m: c.model == m) for m in WHOLE)
    assert different(lambda c, _: c.model in WHOLE) == apart


SHARED = {
    ("sgd", 60): "t1b/60-30-30-ours",
    ("sgd", 80): "t1a/gamma0-0.5 t1a/gamma0-0.8 t1a/gamma0-0.9 t1a/gamma0-0.95 t1a/gamma0-0.99 "
    "t1a/learnt t1b/80-40-40-ours t1c/phase-wise t2/ours t3/sgd-ours",
    ("sgd", 100): "t1b/100-50-50-ours",
    ("sgd", 160): "t1c/at-the-end",
    **{(a, 80): f"t3/{a}-ours t4/{a}" for a in ("adam", "amsgrad", "adabound")},
}
"""Which cells start from the SGD or adaptive run of their network after which epoch."""


def test_which_cells_of_tables_1_to_4_share_what(all_runs: dict[str, Run]) -> None:
    own = ("cifar100", "cnn13")
    runs = [
        run
        for run in all_runs.values()
        if run.settings.seed == 0 and (run.cells[0].dataset, run.cells[0].model) == own
    ]
    jobs = arranged(runs)
    assert {job.run.run_id for job in jobs} == {run.run_id for run in runs}  # no other prefix
    found: dict[tuple[str, int], list[str]] = {}
    for job in jobs:
        if job.parent and not job.run.prefixes.averages_nothing:
            optimizer = part_names(job.run.settings.recipe())["optimizer"].replace("adam_", "")
            cells = found.setdefault((optimizer, job.start), [])
            cells.extend(f"{cell.table}/{cell.column}" for cell in job.run.cells)
    assert {place: " ".join(sorted(cells)) for place, cells in found.items()} == SHARED

    def through(job: Job) -> set[int]:
        return set() if job.parent is None else {job.start} | through(job.parent)

    sgd = [j for j in jobs if j.run.prefixes.averages_nothing and "-sgd-" in j.run.run_id]
    epochs = [set(job.run.prefixes.schedule.epochs[:1]) | through(job) for job in sgd]
    assert {60, 80, 100} <= set().union(*epochs)
    kept = [(epoch, job) for job in sgd for epoch in job.keep]
    assert sorted(epoch for epoch, _ in kept if epoch in (60, 100, 160)) == [60, 100, 160]
    # Five γ0 at T = 80, 0.9 at T = 60 and 100, learnt, and the one over the whole training.
    guests = {name: guest for job in sgd for name, (guest, _) in job.guests.items()}
    weights = [(g.part["weights"], g.epochs[0]) for g in guests.values()]
    gammas = sorted((w["gamma0"], e) for w, e in weights if "gamma0" in w)
    one = [(0.9, t) for t in (60, 80, 80, 100)]
    assert gammas == [(0.5, 80), (0.8, 80), *one, (0.95, 80), (0.99, 80)]
    assert len(weights) - len(gammas) == 1
