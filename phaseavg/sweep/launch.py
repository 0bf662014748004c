"""Launch the jobs of a sweep with any Hydra launcher."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import FrameType

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from phaseavg.cli import say
from phaseavg.errors import (
    Diverged,
    Interrupted,
    OutOfTime,
    ProcessLost,
    SweepFailed,
    UserError,
    describe,
)
from phaseavg.runs.folder import read_failure
from phaseavg.runs.record import RESULT
from phaseavg.sweep.cells import Run
from phaseavg.sweep.order import Job, literal
from phaseavg.sweep.outcomes import NewFiles


def failed_job(error: Exception) -> JobReturn:
    """Return the job return of a job that raised `error`."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def launch(
    launcher: Launcher, jobs: Sequence[Job], limits: Sequence[str], new: NewFiles
) -> dict[Path, JobReturn]:
    """Launch jobs level by level; return the job returns by run folder.

    Runs that another sweep has finished are skipped. A job is also skipped if its prefix was
    interrupted, because it would train the prefix's epochs again, or if the process of its prefix
    died for the first time. A prefix is skipped if the prefix that it starts from diverged.

    Args:
        launcher: the Hydra launcher.
        jobs: jobs in ascending order of level.
        limits: overrides added to all jobs.
        new: the new files of the runs.

    Raises:
        SweepFailed: if the launcher fails, like joblib when a process is killed.
    """
    returned: dict[Path, JobReturn] = {}
    unfinished: set[Path] = set()
    diverged: set[Path] = set()
    names = job_names(jobs)
    for _, level in groupby(jobs, key=lambda job: job.level):
        ready, overrides, failed_before = [], [], set()
        for job in level:
            folder = job.run.settings.run_folder
            parent = job.parent and job.parent.run.settings.run_folder
            if parent in unfinished:
                unfinished.add(folder)
            elif parent in diverged and job.is_prefix:
                diverged.add(folder)
            elif not new.has(job.run, RESULT):
                ready.append(job)
                if read_failure(folder):
                    failed_before.add(folder)
                name = f"hydra.job.name='{names[folder]}'"
                overrides.append([*job.run.overrides, *cells_override(job.run), *limits, name])
        if not ready:
            continue
        try:
            with terminable():
                outcomes = launcher.launch(overrides, initial_job_idx=len(returned))
        except UserError:
            raise
        except Exception as error:
            reason = f"the launcher failed: {describe(error)}"
            raise SweepFailed(f"{reason}; rerun the same command to resume") from error
        for job, outcome in zip(ready, outcomes, strict=True):
            folder, error = job.run.settings.run_folder, outcome._return_value
            returned[folder] = outcome
            if isinstance(error, ProcessLost):
                say(f"{names[folder]}, {job.run.run_id}: {error}")
            if isinstance(error, Diverged):
                diverged.add(folder)
            elif isinstance(error, OutOfTime) or (
                isinstance(error, ProcessLost) and folder not in failed_before
            ):
                unfinished.add(folder)
    return returned


def job_names(jobs: Sequence[Job]) -> dict[Path, str]:
    """Return names such as `run 1 of 8` and `prefix 1 of 4`, by run folder."""
    names = {}
    for kind, members in (
        ("prefix", [job for job in jobs if job.is_prefix]),
        ("run", [job for job in jobs if not job.is_prefix]),
    ):
        for number, job in enumerate(members, start=1):
            names[job.run.settings.run_folder] = f"{kind} {number} of {len(members)}"
    return names


def cells_override(run: Run) -> list[str]:
    """Return the override with a run's cell labels, if `tracking` has the option `cells`."""
    labels = run.labels if "cells" in run.settings.tracking else []
    return [f"tracking.cells={literal(labels)}"] if labels else []


@contextmanager
def terminable() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that a launcher stops its processes."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "interrupted; rerun the same command to resume")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
