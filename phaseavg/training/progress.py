"""Show progress: a bar in a terminal, one line per epoch in a log."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from statistics import fmean
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

WARM_UP, TIMED = 1, 3
"""Steps before the training time on a CPU is estimated: not timed, and timed."""

SLOW_DAYS = 1.0
"""A run on a CPU that takes longer prints its estimated time and the way to a shorter run."""

LABELS = {  # labels of evaluations, in display order
    "train": "train",
    "weights": "test",
    "bn": "test after BN pass",
    "average": "average",
}


def format_errors(line: Mapping[str, Any]) -> str:
    """Format the errors (%) in an epoch's metrics, observers last."""
    evaluations = {label: line[name] for name, label in LABELS.items() if name in line}
    evaluations |= line.get("observers", {})
    return "  ".join(f"{k} {e['error']:.2f}" for k, e in evaluations.items() if "error" in e)


class TrainingProgress(Progress):
    """Shows the progress of a run; a context manager.

    Args:
        schedule: the schedule of the run.
        state: the training state, new or restored.
        console: the output; standard output by default.
    """

    def __init__(
        self, schedule: Schedule, state: TrainingState, console: Console | None = None
    ) -> None:
        console = console or Console(highlight=False, soft_wrap=True)
        # A variable such as FORCE_COLOR makes `console.is_terminal` true for files as well.
        self._to_terminal = console.file.isatty()
        super().__init__(
            "epoch {task.fields[epoch]}",
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            "eta",
            TimeRemainingColumn(),
            "train now {task.fields[train_error]} %{task.fields[errors]}",
            console=console,
            disable=not self._to_terminal,
            transient=True,
        )
        self.epochs, self.phases = schedule.total_epochs, len(schedule.phases)
        self.steps_per_epoch = state.steps_per_epoch
        self._shown = 0.0
        left = -state.step % self.steps_per_epoch  # evaluations after the epoch must not be timed
        self._first_step = state.step + (left if left < WARM_UP + TIMED else 0)
        self._timed_from = 0.0
        self._on_cpu = next(state.model.parameters()).device.type == "cpu"
        self._task = self.add_task(
            "",
            total=self.epochs * self.steps_per_epoch,
            completed=state.step,
            epoch=f"1/{self.epochs}",
            train_error="",
            errors="",
        )

    def step(self, step: int, train_error: Callable[[], float]) -> None:
        """Move the bar to `step` finished updates; cheap enough to call after every update.

        Args:
            step: finished updates.
            train_error: computes the training error (%) of the current epoch; called only when the
                bar is redrawn, since it synchronizes with the GPU.
        """
        if self._on_cpu and step - self._first_step in (WARM_UP, WARM_UP + TIMED):
            self._say_if_slow(step)
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

    def _say_if_slow(self, step: int) -> None:
        """Print the time of a run that would take days on this CPU; timed over a few steps."""
        if step - self._first_step == WARM_UP:
            self._timed_from = time.monotonic()
            return
        seconds = (time.monotonic() - self._timed_from) / TIMED
        days = seconds * (self.epochs * self.steps_per_epoch - step) / 86400
        if days > SLOW_DAYS:
            self.console.print(
                f"about {days:.1f} days on this CPU, at {seconds:.2g} s a step; a GPU or "
                "scale=tenth is faster (docs/reproduce.md)"
            )

    def epoch(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Show the last epoch's metrics in the bar; in a log or at a phase end, print them.

        Args:
            history: the metrics of all finished epochs.
        """
        line = history[-1]
        phase = f"phase {line['phase']}/{self.phases}"
        self.update(self._task, errors=f", last epoch: {phase}  {format_errors(line)}")
        if self._to_terminal and "replaced" not in line:
            return
        training = line["seconds"]["train"]
        # Not all epochs have tests, and a phase end has many: their mean over the run so far.
        other = fmean(sum(e["seconds"].values()) - e["seconds"]["train"] for e in history)
        left = (training + other) * (self.epochs - line["epoch"])
        self.console.print(
            f"epoch {line['epoch']}/{self.epochs}  {phase}  lr {line['learning_rate']:.3g}  "
            f"errors (%): {format_errors(line)}  {line['images_per_second']:.0f} images/s  "
            f"eta {timedelta(seconds=round(left))}"
        )
