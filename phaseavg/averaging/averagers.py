"""When the average replaces the weights: never, at the end of each phase, at the end of training.

A training loop hands its model to one of these at three moments: `start_phase`, `observe`,
`end_phase`. A loop without phases of its own calls `epoch_end` instead, which does all three.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import nn

from phaseavg.averaging.average import Average, WeightAverage
from phaseavg.averaging.learnt import Learnt, LearntAverage
from phaseavg.averaging.weights import Exponential, Weights


def new_average(
    model: nn.Module, weights: Weights | Learnt | None, device: torch.device | str
) -> Average:
    """Return an average of the weights of `model`; by default with the paper's γ0 = 0.9.

    Learnt weights need the weights of every epoch, all others a single running average.
    """
    if isinstance(weights, Learnt):
        return LearntAverage(model, weights, device)
    return WeightAverage(model, weights or Exponential(), device)


class Averager:
    """What all of them share. By itself it watches nothing and replaces nothing.

    Args:
        model: the network in training, with the weights that training starts from.
        epochs: T_p, the number of epochs of every phase.

    Raises:
        ValueError: if there is no phase, or one without epochs.
    """

    average: Average | None = None

    def __init__(self, model: nn.Module, epochs: Sequence[int]) -> None:
        if not epochs or min(epochs) < 1:
            raise ValueError(f"epochs={list(epochs)} must be a list of positive numbers")
        self.epochs = tuple(epochs)
        self._epochs_ended = 0

    @property
    def longest_window(self) -> int:
        """Epochs of the longest window that the average is taken over."""
        return max(self.epochs)

    def window_in(self, phase: int) -> tuple[int, int] | None:
        """Return the window that is open in phase `phase`: its first epoch, from 0, and its length.

        None if none is. Like `replaces` it is known before training.
        """
        return None

    def replaces(self, phase: int) -> bool | None:
        """Return whether the weights become the average at the end of phase `phase`.

        None if that is not known before training: such a run shares nothing with another one.
        """
        return None

    def start_phase(self, model: nn.Module, phase: int) -> None:
        """Take note that phase `phase`, counted from 0, starts from the weights of `model`."""

    def observe(self, model: nn.Module) -> None:
        """Take the weights of `model` at the end of an epoch."""

    def end_phase(self, model: nn.Module, phase: int) -> bool:
        """End phase `phase`; return True if the weights of `model` have become the average.

        Its BatchNorm statistics then belong to other weights: `recompute_batchnorm` comes next.
        """
        return False

    def epoch_end(self, model: nn.Module) -> bool:
        """Do all that is due after an epoch; return True if the weights have become the average.

        For loops that leave the counting of phases to the averager.

        Raises:
            RuntimeError: if all phases are over.
        """
        ends = list(accumulate(self.epochs))
        if self._epochs_ended >= ends[-1]:
            raise RuntimeError(f"all {ends[-1]} epochs of the {len(ends)} phases are over")
        self.observe(model)
        self._epochs_ended += 1
        if self._epochs_ended not in ends:
            return False
        phase = ends.index(self._epochs_ended)
        replaced = self.end_phase(model, phase)
        if phase + 1 < len(self.epochs):
            self.start_phase(model, phase + 1)
        return replaced

    def state_dict(self) -> dict[str, Any]:
        """Return all that continuing needs, as tensors and numbers."""
        average = {} if self.average is None else self.average.state_dict()
        return {"average": average, "epochs_ended": self._epochs_ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._epochs_ended = state["epochs_ended"]


class NoAveraging(Averager):
    """Never: the weights stay the optimizer's."""

    def replaces(self, phase: int) -> bool:
        """Return False."""
        return False


class Phasewise(Averager):
    """At the end of every phase: the paper's method (Algorithm 1).

    Each phase's average is its result and the start of the next. The optimizer's state is not
    touched.

    Args:
        model: the network in training, with the weights that training starts from.
        epochs: T_p, the number of epochs of every phase.
        weights: how the epochs of a phase are weighted; the paper's γ0 = 0.9 by default.
        device: where the average lives.
    """

    average: Average

    def __init__(
        self,
        model: nn.Module,
        epochs: Sequence[int],
        weights: Weights | Learnt | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(model, epochs)
        self.average = new_average(model, weights, device)
        self.start_phase(model, 0)

    def window_in(self, phase: int) -> tuple[int, int]:
        """Return the phase's own."""
        return sum(self.epochs[:phase]), self.epochs[phase]

    def replaces(self, phase: int) -> bool:
        """Return True."""
        return True

    def start_phase(self, model: nn.Module, phase: int) -> None:
        """Open a window over the phase: line 3 of Algorithm 1."""
        self.average.start(model, self.epochs[phase])

    def observe(self, model: nn.Module) -> None:
        """Take in the epoch-end weights: line 8."""
        self.average.observe(model)

    def end_phase(self, model: nn.Module, phase: int) -> bool:
        """Replace the weights by the average: line 10."""
        self.average.copy_to(model)
        self.average.close()
        return True


class AtEnd(Averager):
    """Once, at the end of training, as Polyak and Juditsky (1992) do: Table 1c's "at the end".

    Args:
        model: the network in training, with the weights that training starts from.
        epochs: T_p, the number of epochs of every phase.
        weights: how the epochs of the window are weighted; the paper's γ0 = 0.9 by default.
        window: what is averaged: all of the `training`, or its last `phase`.
        device: where the average lives.

    Raises:
        ValueError: if `window` is neither of the two.
    """

    average: Average

    def __init__(
        self,
        model: nn.Module,
        epochs: Sequence[int],
        weights: Weights | Learnt | None = None,
        window: Literal["training", "phase"] = "training",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(model, epochs)
        first_phases = {"training": 0, "phase": len(self.epochs) - 1}
        if window not in first_phases:
            raise ValueError(f"window={window!r}; choices: {', '.join(first_phases)}")
        self.first_phase = first_phases[window]
        self.average = new_average(model, weights, device)
        self.start_phase(model, 0)

    @property
    def longest_window(self) -> int:
        """Epochs of the one window."""
        return sum(self.epochs[self.first_phase :])

    def window_in(self, phase: int) -> tuple[int, int] | None:
        """Return the one window, in the phases that it is over."""
        if phase < self.first_phase:
            return None
        return sum(self.epochs[: self.first_phase]), self.longest_window

    def replaces(self, phase: int) -> bool:
        """Return whether it is the last phase."""
        return phase == len(self.epochs) - 1

    def start_phase(self, model: nn.Module, phase: int) -> None:
        """Open the window where it begins."""
        if phase == self.first_phase:
            self.average.start(model, self.longest_window)

    def observe(self, model: nn.Module) -> None:
        """Take in the epoch-end weights, once the window is open."""
        if self.average.window > 0:
            self.average.observe(model)

    def end_phase(self, model: nn.Module, phase: int) -> bool:
        """Replace the weights at the end of the last phase."""
        if not self.replaces(phase):
            return False
        self.average.copy_to(model)
        self.average.close()
        return True
