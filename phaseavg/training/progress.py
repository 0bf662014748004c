"""A bar at a terminal, a plain line per epoch in a log."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from phaseavg.phases import Schedule
from phaseavg.training.state import TrainingState

REFRESH_SECONDS = 0.25

SHOWN = {  # tests in the order in which they are shown, with what the reader calls them
    "train": "train",
    "weights": "test",
    "bn": "test after BN pass",
    "average": "average",
}

SOLUTIONS = {"least squares": "their least-squares solution", "uniform": "uniform"}


def described(line: Mapping[str, Any]) -> str:
    """Return the errors (%) in an epoch's metrics, those of observers last."""
    tests = {label: line[name] for name, label in SHOWN.items() if name in line}
    tests |= line.get("observers", {})
    return "  ".join(f"{k} {test['error']:.2f}" for k, test in tests.items() if "error" in test)


def singular(line: Mapping[str, Any]) -> list[str]:
    """Return a warning for each average whose learnt weights could not be solved for."""
    averages = {"average": line.get("average", {})} | line.get("observers", {})
    return [
        f"{name}: the equations of the learnt weights are singular at the end of epoch "
        f"{line['epoch']}; the weights are {SOLUTIONS[average['solved_by']]}"
        for name, average in averages.items()
        if average.get("solved_by") in SOLUTIONS
    ]


class TrainingProgress:
    """Shows where a run is.

    Args:
        schedule: of the whole training.
        state: the run, maybe with updates already done.
        console: where to; standard output by default.
    """

    def __init__(
        self,
        schedule: Schedule,
        state: TrainingState,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.epochs = schedule.total_epochs
        self.phases = len(schedule.phases)
        self.steps_per_epoch = state.steps_per_epoch
        self._first_step: int | None = None
        self._started = 0.0
        self._shown = 0.0
        self._errors = ""
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("train now {task.fields[train_error]} %{task.fields[errors]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(
            "",
            total=self.epochs * self.steps_per_epoch,
            completed=state.step,
            epoch=1,
            epochs=self.epochs,
            rate="",
            train_error="",
            errors="",
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def _seconds_per_step(self, step: int) -> float | None:
        """Return the pace since the first step; None before there is one.

        What a run does before, such as the tests at the phase end that it goes on from, is no pace.
        """
        if self._first_step is None or step <= self._first_step:
            return None
        return (time.monotonic() - self._started) / (step - self._first_step)

    def step(self, step: int, train_error: Callable[[], float]) -> None:
        """Move the bar to `step` finished updates; cheap enough to be called after every one.

        Args:
            step: finished updates.
            train_error: computes that of the epoch under way (%); called only when it is shown, for
                on a GPU it has to wait for the device.
        """
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._started = step, now
        if self._bar.disable or now - self._shown < REFRESH_SECONDS:
            return
        self._shown = now
        self._bar.update(
            self._task,
            completed=step,
            epoch=min(step // self.steps_per_epoch + 1, self.epochs),
            rate=f"{1 / pace:.1f} steps/s" if (pace := self._seconds_per_step(step)) else "",
            train_error=f"{train_error():.1f}",
            errors=self._errors,
        )

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Show an epoch's metrics in the bar; print them in a log, or at a phase end."""
        last = f"phase {line['phase']}/{self.phases}  {described(line)}"
        self._errors = f", last epoch: {last}"
        for warning in singular(line):
            self.console.print(warning)
        if self.console.is_terminal and "replaced" not in line:
            return
        pace, left = self._seconds_per_step(line["step"]), ""
        if pace is not None:
            seconds = (self.epochs * self.steps_per_epoch - line["step"]) * pace
            left = f"  eta {timedelta(seconds=round(seconds))}"
        self.console.print(
            f"epoch {line['epoch']}/{self.epochs}  phase {line['phase']}/{self.phases}  "
            f"lr {line['learning_rate']:.3g}  errors (%): {described(line)}  "
            f"{line['images_per_second']:.0f} images/s{left}"
        )
