"""A learning-rate schedule as a tuple of phases: a pure function of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol, runtime_checkable

Pace = Literal["epoch", "step"]
"""Whether a rate that changes within a phase does so from epoch to epoch or from step to step."""


MOST_EPOCHS = 1_000_000
"""Of a schedule: more would take years, and what counts them would take hours."""


@runtime_checkable
class Shape(Protocol):
    """How the learning rate runs within a phase.

    One whose attribute `per` is `epoch` has one rate in each epoch; others may change it within.
    """

    def factor(self, done: float, epochs: int) -> float:
        """Return the learning rate as a multiple of the phase's.

        Args:
            done: epochs of the phase that are finished, with fractions of one; from 0 on and under
                `epochs`.
            epochs: T, the length of the phase.
        """
        ...


class Constant:
    """One learning rate: the paper's phases."""

    per: Pace = "epoch"

    def factor(self, done: float, epochs: int) -> float:
        """Return 1."""
        return 1.0


def _at_pace(per: Pace, done: float) -> float:
    return math.floor(done) if per == "epoch" else done


def _check_pace(per: Pace) -> Pace:
    if per not in ("epoch", "step"):
        raise ValueError(f"per={per!r}; choices: epoch, step")
    return per


class Decayed:
    """The rate to which exponential averaging amounts (Section 3.1): Table 1d's "decayed".

    Epoch t of T runs at λ (1 − γ^(T−t+1)) / (1 − γ^T), with γ = γ0^(80/T): equation 6's factors of
    the single updates.

    Args:
        gamma0: γ0, as of the average.
        per: `epoch`, or `step`, with t − 1 the fraction of epochs that are finished.

    Raises:
        ValueError: if `gamma0` is not strictly between 0 and 1, or `per` is neither of the two.
    """

    def __init__(self, gamma0: float = 0.9, per: Pace = "epoch") -> None:
        if not 0.0 < gamma0 < 1.0:
            raise ValueError(f"gamma0={gamma0} must lie strictly between 0 and 1")
        self.gamma0, self.per = gamma0, _check_pace(per)

    def factor(self, done: float, epochs: int) -> float:
        """Return (1 − γ^(T−t+1)) / (1 − γ^T) with t − 1 epochs done."""
        log_gamma = 80 / epochs * math.log(self.gamma0)
        left = epochs - _at_pace(self.per, done)
        return math.expm1(left * log_gamma) / math.expm1(epochs * log_gamma)


class Cosine:
    """Half a cosine (Loshchilov and Hutter, ICLR 2017): Table 1d's "cosine", as a single phase.

    Over several phases it restarts with each.

    Args:
        per: `epoch`, or `step`.

    Raises:
        ValueError: if `per` is neither of the two.
    """

    def __init__(self, per: Pace = "epoch") -> None:
        self.per = _check_pace(per)

    def factor(self, done: float, epochs: int) -> float:
        """Return (1 + cos(π (t − 1) / T)) / 2 with t − 1 epochs done."""
        return (1 + math.cos(math.pi * _at_pace(self.per, done) / epochs)) / 2


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs at one learning rate, or one decay of it.

    Attributes:
        index: position in the schedule, from 0.
        first_epoch: number of epochs before it.
        epochs: its length T_p.
        factor: its learning rate λ_p as a multiple of the optimizer's.
    """

    index: int
    first_epoch: int
    epochs: int
    factor: float

    @property
    def end(self) -> int:
        """Number of epochs finished when the phase ends."""
        return self.first_epoch + self.epochs


class Schedule:
    """Phases one after the other: the {T_p, λ_p} of Algorithm 1.

    Args:
        epochs: T_p, the length of each phase in epochs.
        factors: the learning rate of each phase as a multiple of the optimizer's.
        shape: how it runs within each phase; constant by default.
        divisor: of each length: 10 makes a miniature of 8, 4 and 4 epochs out of 80, 40 and 40.

    Raises:
        ValueError: if there is no phase, a length or a factor is not positive, there are too many
            epochs, the two lists differ in length, or the divisor does not divide a length.
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
        if sum(epochs) > MOST_EPOCHS:
            raise ValueError(f"epochs={list(epochs)} must be {MOST_EPOCHS:,} or fewer in all")
        if divisor < 1 or any(length % divisor for length in epochs):
            raise ValueError(f"divisor={divisor} must be positive and divide epochs={list(epochs)}")
        epochs = [length // divisor for length in epochs]
        if len(factors) != len(epochs):
            raise ValueError(
                f"factors={list(factors)} must have one entry for each of epochs={list(epochs)}"
            )
        if min(factors) <= 0:
            raise ValueError(f"factors={list(factors)} must be positive")
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
        """The length of each phase in epochs."""
        return [phase.epochs for phase in self.phases]

    @property
    def total_epochs(self) -> int:
        """The length of the whole training in epochs."""
        return self.phases[-1].end

    def phase(self, epoch: int) -> Phase:
        """Return the phase of epoch `epoch`, counted from 0."""
        return next(phase for phase in self.phases if epoch < phase.end)

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate after `step` updates, as a multiple of the optimizer's."""
        phase = self.phase(step // steps_per_epoch)
        done = (step - phase.first_epoch * steps_per_epoch) / steps_per_epoch
        return phase.factor * self.shape.factor(done, phase.epochs)
