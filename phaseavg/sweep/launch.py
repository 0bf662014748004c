"""Launch the jobs of a sweep with any Hydra launcher."""

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


def failed_job(error: Exception) -> JobReturn:
    """Return the job return of a job that raised `error`."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def launch(
    launcher: Launcher, jobs: Sequence[Job], limits: Sequence[str], new: NewFiles
) -> dict[str, JobReturn]:
    """Launch jobs level by level; return the job returns by run id.

    Runs that another sweep has finished are skipped. A job is also skipped if its prefix was
    interrupted, because it would train the prefix's epochs again.

    Args:
        launcher: the Hydra launcher.
        jobs: jobs in ascending order of level.
        limits: overrides added to all jobs.
        new: the new files of the runs.

    Raises:
        SweepFailed: if the launcher fails, like joblib when a process is killed.
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
