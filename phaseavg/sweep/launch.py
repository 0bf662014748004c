"""The jobs of a sweep, handed to whatever launcher of Hydra's is set."""

import contextlib
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from phaseavg.cli import say
from phaseavg.errors import Interrupted, OutOfTime, ProcessLost, UserError, told
from phaseavg.runs.folder import record_failure
from phaseavg.sweep.cells import Run
from phaseavg.sweep.order import Job, waves_of
from phaseavg.sweep.outcomes import stamp_of


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
        self._notes = tempfile.TemporaryDirectory(prefix="phaseavg-")
        noted = Noted(task, Path(self._notes.name))
        self.launcher = Plugins.instance().instantiate_launcher(context, noted, config)
        self._jobs = 0  # handed to the launcher, those handed over again counted each time
        self.jobs = jobs
        self.stamps = [stamp_of(job.run) for job in jobs]
        self.begun: list[str] = []
        self.errors: dict[str, Any] = {}
        self.returned: list[JobReturn] = []

    def run(self, timing: Callable[[Job], list[str]]) -> None:
        """Launch the jobs; each starts once the one whose prefix it needs is over.

        A job whose prefix was interrupted is left for the next time: trained alone it would repeat
        the prefix's epochs.

        Args:
            timing: returns the overrides that say until when a job may start and run.
        """
        left: set[int] = set()
        for wave in waves_of(self.jobs):
            left |= {id(job) for job in wave if self._must_wait(job, left)}
            ready = [job for job in wave if id(job) not in left]
            if ready:
                self._launch_wave(ready, timing)

    def _must_wait(self, job: Job, left: set[int]) -> bool:
        if job.parent is None:
            return False
        error = self.errors.get(job.parent.run.settings.run_id)
        return id(job.parent) in left or isinstance(error, OutOfTime)

    def _launch_wave(self, jobs: Sequence[Job], timing: Callable[[Job], list[str]]) -> None:
        launched = []
        for job in jobs:
            self.begun.append(job.run.settings.run_id)
            name = f"hydra.job.name='run {len(self.begun)} of {len(self.jobs)}'"
            launched.append([*job.overrides, *cells_override(job.run), *timing(job), name])
        with terminable():
            returned = self._launched(launched, [job.run.settings.run_id for job in jobs])
        self.returned += returned
        for job, outcome in zip(jobs, returned, strict=False):
            settings = job.run.settings
            if outcome.status is JobStatus.FAILED:
                self.errors[settings.run_id] = outcome._return_value
            if isinstance(outcome._return_value, ProcessLost):
                record_failure(settings.run_folder, str(outcome._return_value))

    def _launched(self, jobs: Sequence[list[str]], names: Sequence[str]) -> list[JobReturn]:
        """Launch jobs; where the system ends a launcher's process, go on with the others.

        Which of those under way it was is seen when each of them is launched again, alone.

        Args:
            jobs: overrides of each.
            names: of each, for the user.
        """
        first, self._jobs = self._jobs, self._jobs + len(jobs)
        try:
            return list(self.launcher.launch(jobs, initial_job_idx=first))
        except UserError:
            raise
        except Exception as error:
            under_way = [n for n in range(len(jobs)) if self._began(first + n)]
            found = {n: ended for n in range(len(jobs)) if (ended := self._ended(first + n))}
            lost = [n for n in under_way if n not in found]
            if not lost:  # the launcher itself has failed
                raise
            if len(jobs) == 1:
                reason = ProcessLost(f"its process was ended by the system: {told(error)}")
                say(f"{names[0]}: {reason}")
                return [JobReturn(status=JobStatus.FAILED, _return_value=reason)]
            suspects = ", ".join(names[n] for n in lost)
            say(f"a process was ended by the system; these were under way: {suspects}")
            rest = [n for n in range(len(jobs)) if n not in found and n not in lost]
            for group in filter(None, (rest, *([n] for n in lost))):
                again = self._launched([jobs[n] for n in group], [names[n] for n in group])
                found |= dict(zip(group, again, strict=True))
            return [found[n] for n in range(len(jobs))]

    def _began(self, number: int) -> bool:
        return Path(self._notes.name, f"{number}.begun").exists()

    def _ended(self, number: int) -> JobReturn | None:
        """Return what a job came to, though its launcher has not handed it on; None if nothing."""
        try:
            note = Path(self._notes.name, f"{number}.ended").read_bytes()
            error = pickle.loads(note)  # noqa: S301 -- written by `Noted`
        except (OSError, EOFError, pickle.UnpicklingError):
            return None
        status = JobStatus.COMPLETED if error is None else JobStatus.FAILED
        return JobReturn(status=status, _return_value=error)


@dataclass(frozen=True)
class Noted:
    """Trains a job, and notes in a folder that it began, and with which error it ended.

    Args:
        task: trains a job.
        folder: of this launch alone; on another host there may be none.
    """

    task: TaskFunction
    folder: Path

    def __call__(self, config: DictConfig) -> Any:
        """Train a job."""
        number, error = HydraConfig.get().job.num, None
        with contextlib.suppress(OSError):
            (self.folder / f"{number}.begun").touch()
        try:
            return self.task(config)
        except Exception as raised:
            error = raised
            raise
        finally:
            with contextlib.suppress(Exception):  # an error that cannot be handed on, too
                (self.folder / f"{number}.ended").write_bytes(pickle.dumps(error))


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
