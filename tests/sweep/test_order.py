"""Shared prefixes, and the training order of runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, composed
from hydra.core.utils import JobReturn
from made_cells import NETWORKS

from phaseavg.config import NO_TRACKING, check
from phaseavg.errors import Diverged, OutOfTime, ProcessLost, UserError
from phaseavg.identity import part_names
from phaseavg.runs.folder import record_failure
from phaseavg.runs.prefixes import identity_of, prefix_settings
from phaseavg.sweep.cells import Cell, Run
from phaseavg.sweep.launch import failed_job, launch
from phaseavg.sweep.order import Job, arrange_jobs
from phaseavg.sweep.outcomes import NewFiles
from phaseavg.sweep.plan import shared_epochs

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def new_run() -> MakeRun:
    """Return a function that makes a run from a schedule, an averaging and a seed."""

    def make(
        epochs: list[int],
        averaging: str,
        seed: int = 0,
        factors: Sequence[float] = (1.0, 0.1, 0.01),
    ) -> Run:
        factors = [*factors[: len(epochs)]]
        base = check(composed(*TINY, f"averaging={averaging}").copy())
        schedule = {**base.schedule, "epochs": epochs, "factors": factors}
        lists = (f"schedule.epochs={epochs}", f"schedule.factors={factors}")
        overrides = [*TINY, *lists, f"averaging={averaging}", f"seed={seed}"]
        return Run(overrides, base.model_copy(update={"schedule": schedule, "seed": seed}))

    return make


def describe(jobs: list[Job]) -> list[tuple[str, int]]:
    """Return the name and the start epoch of each job."""
    names = [job.run.settings.run_id.split("-")[3] for job in jobs]
    return [
        (
            ("prefix " if job.is_prefix else f"{name} ")
            + "-".join(map(str, job.run.prefixes.schedule.epochs)),
            job.start,
        )
        for name, job in zip(names, jobs, strict=True)
    ]


def assert_served(jobs: list[Job]) -> None:
    """Check that an earlier job saves each job's prefix, with all averages that it needs."""
    for number, job in enumerate(jobs):
        if job.parent is None:
            continue
        assert job.parent in jobs[:number]
        assert job.parent.is_prefix
        assert job.start == job.parent.run.epochs
        offered = job.parent.run.settings.share.guests.values()
        needed = set(job.run.prefixes.needs(job.start).values())
        assert needed <= {identity_of(average, job.start) for average in offered}
        assert job.run.prefixes.key(job.start) == job.parent.run.prefixes.key(job.start)


def test_a_prefix_is_trained_before_its_runs(new_run: MakeRun) -> None:
    runs = [new_run([8, 4, 4], name) for name in ("phasewise", "none", "end", "rna")]
    jobs = arrange_jobs(runs)
    assert_served(jobs)
    assert describe(jobs) == [
        ("prefix 8", 0),
        ("prefix 8-4-4", 8),
        ("phasewise 8-4-4", 8),
        ("phasewise_rna 8-4-4", 8),
        ("noaveraging 8-4-4", 16),
        ("atend 8-4-4", 16),
    ]
    assert [job.level for job in jobs] == [0, 1, 1, 1, 2, 2]
    assert sum(job.epochs for job in jobs) == 16 + 8 + 8


def test_a_prefix_starts_from_another_prefix(new_run: MakeRun) -> None:
    """80-40-40 at epoch 80 → 100-50-50 at epoch 100; averaging at the end shares 160 epochs."""
    lengths = ([10, 5, 5], [8, 4, 4])
    runs = [new_run(epochs, name) for epochs in lengths for name in ("none", "phasewise")]
    jobs = arrange_jobs([*runs, new_run([8, 4, 4], "end")])
    assert_served(jobs)
    assert describe(jobs) == [
        ("prefix 8", 0),
        ("prefix 10", 8),
        ("prefix 8-4-4", 8),
        ("phasewise 8-4-4", 8),
        ("noaveraging 10-5-5", 10),
        ("phasewise 10-5-5", 10),
        ("noaveraging 8-4-4", 16),
        ("atend 8-4-4", 16),
    ]


def test_runs_without_shared_prefixes_keep_the_users_order(new_run: MakeRun) -> None:
    runs = [new_run([8, 4, 4], "phasewise", seed) for seed in (2, 0, 1)]
    jobs = arrange_jobs(runs)
    assert [job.run for job in jobs] == runs
    assert all(job.parent is None and not job.is_prefix for job in jobs)


def test_a_branch_where_no_run_starts_has_a_prefix(new_run: MakeRun) -> None:
    """Two pairs share 8 epochs, and each pair 16."""
    names = ("none", "end")
    runs = [new_run([8, 8], name, factors=[1.0, f]) for f in (0.1, 0.2) for name in names]
    jobs = arrange_jobs(runs)
    assert_served(jobs)
    assert [job.epochs for job in jobs if job.is_prefix] == [8, 8, 8]
    assert sum(job.epochs for job in jobs) == 24


def test_saved_epochs_are_not_trained_again(new_run: MakeRun) -> None:
    runs = [new_run([8, 4, 4], name) for name in ("none", "phasewise", "rna", "end")]
    jobs = arrange_jobs(runs, {runs[0].run_id: 17, runs[1].run_id: 3})
    assert_served(jobs)
    assert sorted(describe(jobs)) == [
        ("atend 8-4-4", 8),
        ("noaveraging 8-4-4", 17),
        ("phasewise 8-4-4", 8),
        ("phasewise_rna 8-4-4", 8),
        ("prefix 8", 0),
    ]


def changed(run: Run, **update: Any) -> Run:
    return Run(run.overrides, run.settings.model_copy(update=update))


def test_checkpoints_of_different_prefixes_have_different_folders(new_run: MakeRun) -> None:
    runs = [new_run([8, 4, 4], name) for name in ("phasewise", "rna", "uniform")]
    groups = [runs, runs[:2], runs[1:]]
    for update in ({"precision": "bf16"}, {"deterministic": False}):
        execution = runs[0].settings.execution.model_copy(update=update)
        groups.append([changed(run, execution=execution) for run in runs])
    cadence = runs[0].settings.evaluation.model_copy(update={"every": 3})
    groups.append([changed(run, evaluation=cadence) for run in runs])
    folders = [arrange_jobs(group)[0].run.settings.run_folder for group in groups]
    assert len(set(folders)) == len(groups)
    workers = runs[0].settings.execution.model_copy(update={"workers": 3})
    same = arrange_jobs([changed(run, execution=workers) for run in runs])[0].run
    assert same.settings.run_folder == folders[0]


def test_observers_are_averages_of_the_prefix_for_their_runs_only(new_run: MakeRun) -> None:
    runs = [new_run(epochs, "phasewise") for epochs in ([8, 4, 4], [10, 5, 5], [10, 5, 2])]
    observer = {"a": new_run([8, 4, 4], "end").settings.averaging}
    jobs = arrange_jobs([changed(run, observers=observer) for run in runs])
    assert_served(jobs)
    assert describe(jobs)[:2] == [("prefix 8", 0), ("prefix 10", 8)]
    assert [job.run.settings.observers for job in jobs[:2]] == [{}, {}]


class Stub:
    """A launcher whose jobs all fail with an error; it notes their names."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.names: list[str] = []

    def launch(self, overrides: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        new = [line[-1].removeprefix("hydra.job.name=") for line in overrides]
        self.names.extend(new)
        return [failed_job(self.error) for _ in new]


@pytest.mark.parametrize("error", [ProcessLost("killed"), OutOfTime("later"), ValueError("wrong")])
def test_runs_wait_for_an_unfinished_prefix_but_not_for_a_failed_one(
    new_run: MakeRun, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = arrange_jobs([new_run([8, 4, 4], name) for name in ("phasewise", "rna")])
    launcher = Stub(error)
    launch(launcher, jobs, [], NewFiles(job.run for job in jobs))
    runs = ["'run 1 of 2'", "'run 2 of 2'"]
    assert launcher.names == ["'prefix 1 of 1'", *runs * isinstance(error, ValueError)]
    if isinstance(error, ProcessLost):  # the second time, its runs must not wait any longer
        record_failure(jobs[0].run.settings.run_folder, "killed")
        launch(launcher, jobs, [], NewFiles(job.run for job in jobs))
        assert launcher.names[1:] == ["'prefix 1 of 1'", *runs]


def test_a_prefix_is_not_started_from_a_diverged_one(
    new_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = {"reason": "the loss became nan", "step": 2, "epoch": 1, "learning_rate": 0.1}
    error = Diverged(outcome)
    runs = [new_run([8, 4, 4], name) for name in ("none", "phasewise", "end")]
    jobs = arrange_jobs(runs)
    assert [job.is_prefix for job in jobs] == [True, True, False, False, False]
    launcher = Stub(error)
    launch(launcher, jobs, [], NewFiles(job.run for job in jobs))
    assert launcher.names == ["'prefix 1 of 2'", *(f"'run {n} of 3'" for n in (1, 2, 3))]


def test_the_overrides_of_a_prefix_define_its_run(new_run: MakeRun) -> None:
    job = arrange_jobs([new_run([8, 4, 4], name) for name in ("rna", "phasewise")])[0]
    settings = prefix_settings(check(composed(*job.run.overrides)))
    assert settings.recipe() == job.run.settings.recipe()
    assert settings.run_folder == job.run.settings.run_folder
    assert settings.run_folder.is_relative_to("runs/shared")
    assert settings.tracking == job.run.settings.tracking == NO_TRACKING
    assert settings.share.guests == job.run.settings.share.guests


def test_a_prefix_must_not_change_the_run(new_run: MakeRun) -> None:
    for epochs, averaging in ((9, "phasewise"), (17, "none")):
        run = new_run([8, 4, 4], averaging)
        share = run.settings.share.model_copy(update={"prefix": epochs})
        with pytest.raises(UserError, match=f"^share.prefix={epochs}: the run cannot share"):
            prefix_settings(changed(run, share=share).settings)


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
    ("sgd", 60): "t1b/60-30-30-ours t1b/60-30-30-sgd",
    ("sgd", 80): "t1a/gamma0-0.5 t1a/gamma0-0.8 t1a/gamma0-0.9 t1a/gamma0-0.95 t1a/gamma0-0.99 "
    "t1a/learnt t1b/80-40-40-ours t1c/phase-wise t2/ours t3/sgd-orig t3/sgd-ours",
    ("sgd", 100): "t1b/100-50-50-ours t1b/100-50-50-sgd",
    ("sgd", 160): "t1b/80-40-40-sgd t1c/at-the-end t1c/no t2/sgd",
    **{(a, 80): f"t2/{a} t3/{a}-orig t3/{a}-ours t4/{a}" for a in ("adam", "amsgrad", "adabound")},
}
"""The cells that start from a prefix, by optimizer and epoch."""


def test_shared_prefixes_of_tables_1_to_4(all_runs: dict[str, Run]) -> None:
    own = ("cifar100", "cnn13")
    runs = [
        run
        for run in all_runs.values()
        if run.settings.seed == 0 and (run.cells[0].dataset, run.cells[0].model) == own
    ]
    jobs = arrange_jobs(runs)
    assert_served(jobs)
    assert sum(job.is_prefix for job in jobs) == len(SHARED)
    found: dict[tuple[str, int], list[str]] = {}
    for job in jobs:
        if job.parent and not job.is_prefix:
            optimizer = part_names(job.run.settings.recipe())["optimizer"].replace("adam_", "")
            cells = found.setdefault((optimizer, job.start), [])
            cells.extend(f"{cell.table}/{cell.column}" for cell in job.run.cells)
    assert {place: " ".join(sorted(cells)) for place, cells in found.items()} == SHARED


def test_a_run_that_cannot_share_does_not_stop_others(new_run: MakeRun) -> None:
    runs = [new_run([8, 4, 4], name) for name in ("none", "phasewise", "end")]
    jobs = arrange_jobs([*runs[:2], changed(runs[2], save_trajectory="epochs")])
    assert_served(jobs)
    assert sorted(describe(jobs)) == [
        ("atend 8-4-4", 0),
        ("noaveraging 8-4-4", 8),
        ("phasewise 8-4-4", 8),
        ("prefix 8", 0),
    ]
