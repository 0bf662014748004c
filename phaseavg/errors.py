"""What ends a run early, each told in one line at the prompt."""

import signal


class UserError(ValueError):
    """A mistake that the user can mend. The message names the field, the value and the choices."""


class Diverged(RuntimeError):  # noqa: N818 -- it is an outcome of training, not a mistake
    """The training loss is no longer finite. Recorded before it is raised to the prompt.

    Args:
        step: the update whose batch gave that loss, counted from 1.
        epoch: its epoch, counted from 1.
        learning_rate: in force there.
        train_loss: `nan` or `inf`, as text, for JSON has neither.
    """

    FIELDS = ("step", "epoch", "learning_rate", "train_loss")

    def __init__(self, step: int, epoch: int, learning_rate: float, train_loss: str) -> None:
        self.outcome = {
            "step": step,
            "epoch": epoch,
            "learning_rate": learning_rate,
            "train_loss": train_loss,
        }
        super().__init__(
            f"diverged: the training loss became {train_loss} at step {step} (epoch {epoch}, "
            f"learning rate {learning_rate:g})"
        )


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop, and it has saved its state.

    Not an `Exception`, so that it ends a sweep as well.

    Args:
        number: of the signal.
        message: what was saved where.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = signal.Signals(number)
