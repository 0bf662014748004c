"""The jobs of a sweep, handed to whatever launcher of Hydra's is set."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from phaseavg.cli import say
from phaseavg.errors import (
    Interrupted,
    JobFailed,
    OutOfTime,
    ProcessLost,
    SweepFailed,
    UserError,
    told,
)
from phaseavg.sweep.cells import Run
from phaseavg.sweep.order import Job, waves_of
from phaseavg.sweep.outcomes import stamp_of


def failed(error: Exception) -> JobReturn:
    """Return what a job that raised `error` returns."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


class Launch:
    """The jobs of a sweep, wave after wave, under whatever launcher is set.

    Args:
        context: of Hydra.
        task: trains a run.
        config: of the sweep.
        jobs: of the sweep.

    Attributes:
        stamps: when the result and the failure of each job's run were written before.
        begun: ids of the runs that were handed to the launcher.
        errors: what runs have raised, by run id.
        returned: by the launcher, of all jobs.
    """

    def __init__(
        self, context: HydraContext, task: TaskFunction, config: DictConfig, jobs: Sequence[Job]
    ) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(context, task, config)
        self.jobs = jobs
        self.stamps = [stamp_of(job.run) for job in jobs]
        self._stamps = {id(job): stamp for job, stamp in zip(jobs, self.stamps, strict=True)}
        self.begun: list[str] = []
        self.errors: dict[str, Any] = {}
        self.returned: list[JobReturn] = []

    def run(self, timing: Callable[[Job], list[str]]) -> None:
        """Launch the jobs; each starts once the one whose prefix it needs is over.

        A run that another sweep has finished meanwhile is left out. A job whose prefix was
        interrupted is left for the next time: trained alone it would repeat the prefix's epochs.

        Args:
            timing: returns the overrides that say until when a job may start and run.

        Raises:
            SweepFailed: if the launcher fails before it has run anything.
        """
        left: set[int] = set()
        for wave in waves_of(self.jobs):
            left |= {id(job) for job in wave if self._must_wait(job, left)}
            ready = [job for job in wave if id(job) not in left and not self._has_ended(job)]
            if ready:
                self._launch_wave(ready, timing)

    def _has_ended(self, job: Job) -> bool:
        return stamp_of(job.run)["result.json"] != self._stamps[id(job)]["result.json"]

    def _must_wait(self, job: Job, left: set[int]) -> bool:
        if job.parent is None:
            return False
        error = self.errors.get(job.parent.run.run_id)
        return id(job.parent) in left or isinstance(error, OutOfTime)

    def _launch_wave(self, jobs: Sequence[Job], timing: Callable[[Job], list[str]]) -> None:
        launched, first = [], len(self.begun)
        for job in jobs:
            self.begun.append(job.run.run_id)
            name = f"hydra.job.name='run {len(self.begun)} of {len(self.jobs)}'"
            launched.append([*job.overrides, *cells_override(job.run), *timing(job), name])
        with terminable():
            returned = self._launched(launched, first)
        self.returned += returned
        for job, outcome in zip(jobs, returned, strict=True):
            run_id = job.run.run_id
            if outcome.status is JobStatus.FAILED:
                self.errors[run_id] = outcome._return_value
            if isinstance(outcome._return_value, ProcessLost):
                say(f"{run_id}: {outcome._return_value}")

    def _launched(self, jobs: Sequence[list[str]], first: int) -> list[JobReturn]:
        """Launch jobs; if the launcher itself fails, all of them have that error.

        joblib does when one of its processes is killed.
        """
        before = [stamp_of(job.run) for job in self.jobs]
        try:
            return list(self.launcher.launch(jobs, initial_job_idx=first))
        except UserError:
            raise
        except Exception as error:
            reason = f"the launcher failed: {told(error)}"
            if [stamp_of(job.run) for job in self.jobs] == before == self.stamps:
                raise SweepFailed(f"{reason}; no run has finished") from error
            say(reason)
            return [failed(JobFailed(reason))] * len(jobs)


def cells_override(run: Run) -> list[str]:
    """Return the override that names a run's cells for its tracking, if that takes them."""
    labels = [QuotedString(label, Quote.single).with_quotes() for label in run.labels]
    # OmegaConf would look up what looks like an interpolation.
    escaped = [label.replace("${", "\\${") for label in labels]
    tracked = "cells" in run.settings.tracking
    return [f"tracking.cells=[{','.join(escaped)}]"] if labels and tracked else []


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
