"""The jobs of a sweep, handed to whatever launcher of Hydra's is set."""

import contextlib
import pickle
import signal
import tempfile
from collections.abc import Iterator, Sequence
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
from phaseavg.errors import Interrupted, ProcessLost, UserError, told
from phaseavg.runs.folder import record_failure
from phaseavg.sweep.cells import Run
from phaseavg.sweep.outcomes import stamp_of
from phaseavg.sweep.shared import Wave


class Launch:
    """The jobs of a sweep, wave after wave, by whatever launcher is set.

    Args:
        context: of Hydra.
        task: trains a run.
        config: of the sweep.
        missing: all runs that there are to train.

    Attributes:
        stamps: when what each of them ended with before was written.
        trunks: how many shared trajectories were handed to the launcher.
        begun: ids of those that were handed to the launcher.
        errors: what runs have raised, by run id.
        returned: by the launcher, of all jobs.
    """

    def __init__(
        self, context: HydraContext, task: TaskFunction, config: DictConfig, missing: Sequence[Run]
    ) -> None:
        self._notes = tempfile.TemporaryDirectory(prefix="phaseavg-")
        noted = Noted(task, Path(self._notes.name))
        self.launcher = Plugins.instance().instantiate_launcher(context, noted, config)
        self._jobs = 0  # that the launcher was handed, those that it was handed again counted each
        self.missing = missing
        self.stamps = [stamp_of(run) for run in missing]
        self.trunks = 0
        self.begun: list[str] = []
        self.errors: dict[str, Any] = {}
        self.returned: list[JobReturn] = []

    def run(self, waves: Sequence[Wave], deadline: float | None) -> None:
        """Launch waves, each once the one before is over.

        Args:
            waves: jobs.
            deadline: when they have to stop, in seconds since 1970.
        """
        stop = [] if deadline is None else [f"stop_at={deadline:.0f}"]
        trunks = self.trunks + sum(len(wave.trunks) for wave in waves)
        for wave in waves:
            jobs = []
            for trunk, overrides in wave.trunks:
                self.trunks += 1
                name = f"hydra.job.name='shared trajectory {self.trunks} of {trunks}'"
                jobs.append([*overrides, f"share.trunk='{trunk.id}'", *stop, name])
            for run in wave.runs:
                self.begun.append(run.settings.run_id)
                name = f"hydra.job.name='run {len(self.begun)} of {len(self.missing)}'"
                jobs.append([*run.overrides, *cells_override(run), *stop, name])
            if not jobs:
                continue
            names = [*(trunk.name for trunk, _ in wave.trunks)]
            names += [run.settings.run_id for run in wave.runs]
            with terminable():
                returned = self._launched(jobs, names)
            self.returned += returned
            for run, job in zip(wave.runs, returned[len(wave.trunks) :], strict=False):
                if job.status is JobStatus.FAILED:
                    self.errors[run.settings.run_id] = job._return_value
                if isinstance(job._return_value, ProcessLost):
                    record_failure(run.settings.run_folder, str(job._return_value))

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

    def not_begun(self) -> list[Run]:
        """Return the runs that no launcher was handed."""
        return [run for run in self.missing if run.settings.run_id not in self.begun]


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
    """Return the override that tells a run its cells, whatever a column is called; none of none."""
    labels = [QuotedString(label, Quote.single).with_quotes() for label in run.labels]
    # OmegaConf would look up what looks like an interpolation.
    escaped = [label.replace("${", "\\${") for label in labels]
    return [f"cells=[{','.join(escaped)}]"] if labels else []


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what a launcher does as Ctrl-C does, so that it stops its processes."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "interrupted; the same command goes on from what is saved")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
