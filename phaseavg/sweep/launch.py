"""The jobs of a sweep, handed to whatever launcher of Hydra's is set."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from phaseavg.errors import Interrupted
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
        self.launcher = Plugins.instance().instantiate_launcher(context, task, config)
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
            with terminable():
                returned = self.launcher.launch(jobs, initial_job_idx=len(self.returned))
            self.returned += returned
            for run, job in zip(wave.runs, returned[len(wave.trunks) :], strict=False):
                if job.status is JobStatus.FAILED:
                    self.errors[run.settings.run_id] = job._return_value

    def not_begun(self) -> list[Run]:
        """Return the runs that no launcher was handed."""
        return [run for run in self.missing if run.settings.run_id not in self.begun]


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
