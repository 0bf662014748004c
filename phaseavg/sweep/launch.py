"""Launch the jobs of a sweep with any of Hydra's launchers."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from types import FrameType

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from phaseavg.cli import say
from phaseavg.errors import Interrupted, OutOfTime, ProcessLost, SweepFailed, UserError, describe
from phaseavg.runs.record import RESULT
from phaseavg.sweep.cells import Run
from phaseavg.sweep.order import Job, literal
from phaseavg.sweep.outcomes import NewFiles


def failed(error: Exception) -> JobReturn:
    """Return what a job that raised `error` returns."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def launch(
    launcher: Launcher, jobs: Sequence[Job], limits: Sequence[str], new: NewFiles
) -> dict[str, JobReturn]:
    """Launch jobs, level by level; return what each job returned, by run id.

    A run that another sweep has finished meanwhile is left out. So is a job whose prefix was
    interrupted: trained alone it would repeat the prefix's epochs.

    Args:
        launcher: of Hydra.
        jobs: in ascending order of their levels.
        limits: overrides of all jobs.
        new: files of these runs.

    Raises:
        SweepFailed: if the launcher itself fails, as joblib does when a process is killed.
    """
    returned: dict[str, JobReturn] = {}
    unfinished: set[str] = set()
    for _, level in groupby(jobs, key=lambda job: job.level):
        ready, overrides = [], []
        for job in level:
            if job.parent and job.parent.run.run_id in unfinished:
                unfinished.add(job.run.run_id)
            elif not new.has(job.run, RESULT):
                ready.append(job)
                name = f"hydra.job.name='run {len(returned) + len(ready)} of {len(jobs)}'"
                overrides.append([*job.overrides, *cells_override(job.run), *limits, name])
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
            run_id, error = job.run.run_id, outcome._return_value
            returned[run_id] = outcome
            if isinstance(error, OutOfTime):
                unfinished.add(run_id)
            elif isinstance(error, ProcessLost):
                say(f"{run_id}: {error}")
    return returned


def cells_override(run: Run) -> list[str]:
    """Return the override that names a run's cells for its tracking, if that takes them."""
    labels = run.labels if "cells" in run.settings.tracking else []
    return [f"tracking.cells={literal(labels)}"] if labels else []


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what a launcher does as Ctrl-C does, so that it stops its processes."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "interrupted; rerun the same command to resume")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
