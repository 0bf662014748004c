"""A learning-rate schedule as a tuple of phases: a pure function of the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs at one learning rate.

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

    Raises:
        ValueError: if there is no phase, a length or a factor is not positive, or the two lists
            differ in length.
    """

    def __init__(self, epochs: Sequence[int], factors: Sequence[float]) -> None:
        if not epochs or min(epochs) < 1:
            raise ValueError(f"epochs={list(epochs)} must be a list of positive numbers")
        if len(factors) != len(epochs):
            raise ValueError(
                f"factors={list(factors)} must have one entry for each of epochs={list(epochs)}"
            )
        if min(factors) <= 0:
            raise ValueError(f"factors={list(factors)} must be positive")
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
        return self.phase(step // steps_per_epoch).factor
