"""What ends a run early, each told in one line at the prompt."""

import signal
from collections.abc import Mapping
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend. The message names the field, the value and the choices."""


def told(error: Exception) -> str:
    """Return in one line what an error of a library says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class PartFailed(RuntimeError):  # noqa: N818 -- as it is said
    """A part of a run, such as a user's own network, cannot be imported or made.

    The message names the part, the file and the line; the cause is the part's own error.
    """


class Diverged(RuntimeError):  # noqa: N818 -- it is an outcome of training, not a mistake
    """Training has left the finite numbers. Recorded before it is raised to the prompt.

    Args:
        outcome: what is recorded: `reason`, and where it showed: `step`, the update counted from 1,
            `epoch`, likewise, and `learning_rate`.
    """

    FIELDS = ("reason", "step", "epoch", "learning_rate")

    def __init__(self, outcome: Mapping[str, Any]) -> None:
        super().__init__(dict(outcome))
        self.outcome = {key: outcome[key] for key in self.FIELDS}

    def __str__(self) -> str:
        return (
            "diverged: {reason} at step {step} (epoch {epoch}, learning rate {learning_rate:g})"
        ).format(**self.outcome)


class JobFailed(RuntimeError):  # noqa: N818 -- as it is said
    """A job of a sweep has failed, and has said why. It can be handed from process to process."""


class ProcessLost(RuntimeError):  # noqa: N818 -- as it is said
    """The system has ended the process of a run: for want of memory, or by a fault in its code."""


class SweepFailed(RuntimeError):  # noqa: N818 -- as it is said
    """A sweep is over, and not all of its runs have finished."""


class OutOfTime(RuntimeError):  # noqa: N818 -- as it is said
    """A run has saved its state because its time was over; it has not failed."""


class NotStarted(OutOfTime):
    """A run of a sweep that could not have ended in time, or came after an interrupt."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop, and it has saved its state.

    Not an `Exception`, so that it ends a sweep as well.

    Args:
        number: of the signal.
        message: what was saved where.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)
        self.number = signal.Signals(number)

    def __str__(self) -> str:
        return str(self.args[1])
