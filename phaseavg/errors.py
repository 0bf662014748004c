"""Exceptions that end a run early; the command line prints each in one line."""

import signal
from collections.abc import Mapping
from typing import Any


class UserError(ValueError):
    """A mistake that the user can fix. The message names the field, the value and the choices."""


def describe(error: Exception) -> str:
    """Return the type and message of a library's error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class FirstFailed(UserError):  # noqa: N818 -- named after the event
    """The first of several processes failed; it prints the error, the others end silently."""


class PartFailed(RuntimeError):  # noqa: N818 -- named after the event
    """A part of a run, such as a user's own network, cannot be imported or built.

    The message names the part, the file and the line; the cause is the part's own error.
    """


class Diverged(RuntimeError):  # noqa: N818 -- an outcome of training, not a mistake
    """The loss or a weight is not finite. The result is recorded before the error is raised.

    Args:
        outcome: the recorded fields: `reason`, and `step`, `epoch` (both counted from 1) and
            `learning_rate` at which the divergence was detected.
    """

    FIELDS = ("reason", "step", "epoch", "learning_rate")

    def __init__(self, outcome: Mapping[str, Any]) -> None:
        super().__init__(dict(outcome))
        self.outcome = {key: outcome[key] for key in self.FIELDS}

    def __str__(self) -> str:
        return (
            "diverged: {reason} at step {step} (epoch {epoch}, learning rate {learning_rate:g})"
        ).format(**self.outcome)


class JobFailed(RuntimeError):  # noqa: N818 -- named after the event
    """A job of a sweep failed and has printed its error. Instances can be pickled."""


class ProcessLost(RuntimeError):  # noqa: N818 -- named after the event
    """A run's process was killed, for lack of memory, or crashed, or lost contact with another."""


class SweepFailed(RuntimeError):  # noqa: N818 -- named after the event
    """A sweep ended with unfinished runs."""


class OutOfTime(RuntimeError):  # noqa: N818 -- named after the event
    """A run saved its state and stopped at its deadline; it can be resumed."""


class NotStarted(OutOfTime):
    """A run of a sweep was skipped, for lack of time or after an interrupt."""


class Interrupted(KeyboardInterrupt):
    """The run saved its state and stopped after a signal.

    It is not an `Exception`, so that it also ends a sweep.

    Args:
        number: the signal number.
        message: the last step and the folder of the saved state.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)
        self.number = signal.Signals(number)

    def __str__(self) -> str:
        return str(self.args[1])
