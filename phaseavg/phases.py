"""Learning-rate schedules made of phases."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol, runtime_checkable

Pace = Literal["epoch", "step"]
"""How often the learning rate changes within a phase: after every epoch or after every step."""


MAX_EPOCHS = 1_000_000
"""Maximum number of epochs of a schedule; a loop over more epochs would take hours."""


@runtime_checkable
class Shape(Protocol):
    """Learning rate within a phase.

    If the attribute `per` is `epoch`, the learning rate is constant within each epoch.
    """

    def factor(self, done: float, epochs: int) -> float:
        """Return the learning rate as a multiple of the phase's learning rate.

        Args:
            done: finished epochs of the phase, in [0, `epochs`); with `per = "epoch"` an integer,
                otherwise a fraction.
            epochs: T, the number of epochs in the phase.
        """
        ...


class Constant:
    """Constant learning rate within a phase, as in the paper."""

    per: Pace = "epoch"

    def factor(self, done: float, epochs: int) -> float:
        """Return 1."""
        return 1.0


def _check_pace(per: Pace) -> Pace:
    if per not in ("epoch", "step"):
        raise ValueError(f"per={per!r}; choices: epoch, step")
    return per


class Decayed:
    """Learning-rate decay equivalent to exponential averaging (Section 3.1): Table 1d's "decayed".

    The learning rate in epoch t of T is λ (1 − γ^(T−t+1)) / (1 − γ^T), with γ = γ0^(80/T). These
    are the factors of the updates in equation 6.

    Args:
        gamma0: γ0 of the equivalent average.
        per: `epoch` or `step`; with `step`, t − 1 is the fractional number of finished epochs.

    Raises:
        ValueError: if `gamma0` is not strictly between 0 and 1, or `per` is invalid.
    """

    def __init__(self, gamma0: float = 0.9, per: Pace = "epoch") -> None:
        if not 0.0 < gamma0 < 1.0:
            raise ValueError(f"gamma0={gamma0} must lie strictly between 0 and 1")
        self.gamma0, self.per = gamma0, _check_pace(per)

    def factor(self, done: float, epochs: int) -> float:
        """Return (1 − γ^(T−t+1)) / (1 − γ^T) after t − 1 epochs."""
        log_gamma = 80 / epochs * math.log(self.gamma0)
        return math.expm1((epochs - done) * log_gamma) / math.expm1(epochs * log_gamma)


class Cosine:
    """Cosine decay (Loshchilov and Hutter, ICLR 2017); with a single phase, Table 1d's "cosine".

    The cosine restarts with each phase.

    Args:
        per: `epoch` or `step`.

    Raises:
        ValueError: if `per` is invalid.
    """

    def __init__(self, per: Pace = "epoch") -> None:
        self.per = _check_pace(per)

    def factor(self, done: float, epochs: int) -> float:
        """Return (1 + cos(π (t − 1) / T)) / 2 after t − 1 epochs."""
        return (1 + math.cos(math.pi * done / epochs)) / 2


@dataclass(frozen=True)
class Phase:
    """Consecutive epochs with one learning rate, or one decay of the learning rate.

    Attributes:
        index: position in the schedule, from 0.
        first_epoch: first epoch of the phase, counted from 0.
        epochs: T_p, the number of epochs.
        factor: λ_p, the learning rate as a multiple of the optimizer's `lr`.
    """

    index: int
    first_epoch: int
    epochs: int
    factor: float

    @property
    def end(self) -> int:
        """Number of finished epochs at the end of the phase."""
        return self.first_epoch + self.epochs


class Schedule:
    """A sequence of phases, the {T_p, λ_p} of Algorithm 1.

    Args:
        epochs: T_p, the number of epochs in each phase.
        factors: λ_p, the learning rate of each phase as a multiple of the optimizer's `lr`.
        shape: the learning rate within each phase; constant by default.
        divisor: divisor of all phase lengths; 10 shortens 80, 40, 40 epochs to 8, 4, 4.

    Raises:
        ValueError: if there are no phases, a length or factor is not positive, the schedule is too
            long, `epochs` and `factors` differ in length, or `divisor` does not divide a length.
    """

    def __init__(
        self,
        epochs: Sequence[int],
        factors: Sequence[float],
        shape: Shape | None = None,
        divisor: int = 1,
    ) -> None:
        if not epochs or min(epochs) < 1:
            raise ValueError(f"epochs={list(epochs)} must be a list of positive numbers")
        if sum(epochs) > MAX_EPOCHS:
            raise ValueError(f"epochs={list(epochs)} must be {MAX_EPOCHS:,} or fewer in all")
        if divisor < 1 or any(length % divisor for length in epochs):
            raise ValueError(f"divisor={divisor} must be positive and divide epochs={list(epochs)}")
        epochs = [length // divisor for length in epochs]
        if len(factors) != len(epochs):
            raise ValueError(
                f"factors={list(factors)} must have one entry for each of epochs={list(epochs)}"
            )
        if not all(0 < factor < math.inf for factor in factors):
            raise ValueError(f"factors={list(factors)} must be positive and finite")
        self.shape = shape or Constant()
        starts = [0, *accumulate(epochs)]
        self.phases = tuple(
            Phase(index, start, length, factor)
            for index, (start, length, factor) in enumerate(
                zip(starts, epochs, factors, strict=False)
            )
        )

    @property
    def epochs(self) -> list[int]:
        """The number of epochs in each phase."""
        return [phase.epochs for phase in self.phases]

    @property
    def total_epochs(self) -> int:
        """The number of epochs in all phases together."""
        return self.phases[-1].end

    def phase(self, epoch: int) -> Phase:
        """Return the phase that contains `epoch`, counted from 0."""
        return next(phase for phase in self.phases if epoch < phase.end)

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate after `step` updates as a multiple of the optimizer's `lr`."""
        phase = self.phase(step // steps_per_epoch)
        done = (step - phase.first_epoch * steps_per_epoch) / steps_per_epoch
        if getattr(self.shape, "per", "step") == "epoch":
            done = math.floor(done)
        return phase.factor * self.shape.factor(done, phase.epochs)
