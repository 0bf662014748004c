"""A bar at a terminal, a plain line per epoch in a log."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from phaseavg.phases import Schedule
from phaseavg.training.state import TrainingState

REFRESH_SECONDS = 0.25

SHOWN = {  # tests in the order in which they are shown, with their labels
    "train": "train",
    "weights": "test",
    "bn": "test after BN pass",
    "average": "average",
}


def described(line: Mapping[str, Any]) -> str:
    """Return the errors (%) in an epoch's metrics, those of observers last."""
    tests = {label: line[name] for name, label in SHOWN.items() if name in line}
    tests |= line.get("observers", {})
    return "  ".join(f"{k} {test['error']:.2f}" for k, test in tests.items() if "error" in test)


class TrainingProgress(Progress):
    """Shows where a run is; a context manager.

    Args:
        schedule: of the whole training.
        state: the run, maybe with updates already done.
        console: where to; standard output by default.
    """

    def __init__(
        self, schedule: Schedule, state: TrainingState, console: Console | None = None
    ) -> None:
        console = console or Console(highlight=False, soft_wrap=True)
        super().__init__(
            "epoch {task.fields[epoch]}",
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            "eta",
            TimeRemainingColumn(),
            "train now {task.fields[train_error]} %{task.fields[errors]}",
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.epochs, self.phases = schedule.total_epochs, len(schedule.phases)
        self.steps_per_epoch = state.steps_per_epoch
        self._shown = 0.0
        self._task = self.add_task(
            "",
            total=self.epochs * self.steps_per_epoch,
            completed=state.step,
            epoch=f"1/{self.epochs}",
            train_error="",
            errors="",
        )

    def step(self, step: int, train_error: Callable[[], float]) -> None:
        """Move the bar to `step` finished updates; cheap enough to be called after every one.

        Args:
            step: finished updates.
            train_error: computes that of the present epoch (%); called only when it is shown, for
                on a GPU it has to wait for the device.
        """
        if self.disable or time.monotonic() - self._shown < REFRESH_SECONDS:
            return
        self._shown = time.monotonic()
        epoch = min(step // self.steps_per_epoch + 1, self.epochs)
        self.update(
            self._task,
            completed=step,
            epoch=f"{epoch}/{self.epochs}",
            train_error=f"{train_error():.1f}",
        )

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Show an epoch's metrics in the bar; print them in a log, or at a phase end."""
        phase = f"phase {line['phase']}/{self.phases}"
        self.update(self._task, errors=f", last epoch: {phase}  {described(line)}")
        if self.console.is_terminal and "replaced" not in line:
            return
        left = sum(line["seconds"].values()) * (self.epochs - line["epoch"])
        self.console.print(
            f"epoch {line['epoch']}/{self.epochs}  {phase}  lr {line['learning_rate']:.3g}  "
            f"errors (%): {described(line)}  {line['images_per_second']:.0f} images/s  "
            f"eta {timedelta(seconds=round(left))}"
        )
