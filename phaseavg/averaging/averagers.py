"""When the average replaces the weights: never, at the end of training, of each phase."""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal, Self

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from phaseavg.averaging.average import WeightAverage, unwrapped
from phaseavg.averaging.batchnorm import recompute_batchnorm
from phaseavg.averaging.rna import RNA, RNAAverage
from phaseavg.averaging.weights import Exponential, Weights


class Averager:
    """What all averagers share. By itself it averages nothing.

    A subclass sets `average` and `windows`; or it overrides `epoch_end`.

    Args:
        model: the network in training, with the weights that training starts from.
        epochs: T_p, the number of epochs of every phase.
        lengths: the same in any other unit, such as steps; `epoch_end` is then called after each.

    Raises:
        ValueError: if there is no phase, or one without epochs.
    """

    average: WeightAverage | RNAAverage | None = None
    windows: Sequence[range] | None = None
    """The epochs, counted from 0, that each average is over; in order and disjoint. At the end of
    a window its average replaces the weights. None: not known before training."""

    def __init__(
        self,
        model: nn.Module,
        epochs: Sequence[int] | None = None,
        *,
        lengths: Sequence[int] | None = None,
    ) -> None:
        if (epochs is None) == (lengths is None):
            raise ValueError(f"epochs={epochs}, lengths={lengths}: give one of the two")
        name, phases = ("epochs", epochs) if lengths is None else ("lengths", lengths)
        if not phases or min(phases) < 1:
            raise ValueError(f"{name}={list(phases or [])} must be a list of positive numbers")
        self.lengths = list(phases)
        self.ended = 0
        """Epochs that have ended."""

    @classmethod
    def from_scheduler(
        cls, model: nn.Module, scheduler: LRScheduler, total_epochs: int, **options: Any
    ) -> Self:
        """Return an averager whose phases end where a scheduler lowers the learning rate.

        The rate of the first parameter group counts, and it must depend on the epoch alone. Count
        in steps if you step the scheduler so.

        Raises:
            ValueError: if the scheduler has been stepped, or lowers the rate after every epoch, so
                that there are no phases.
        """
        return cls(model, _phase_lengths(scheduler, total_epochs), **options)

    @property
    def phases(self) -> list[range]:
        """The epochs of each phase, counted from 0."""
        return [range(a, b) for a, b in pairwise(accumulate(self.lengths, initial=0))]

    @property
    def remaining(self) -> int:
        """Epochs that are yet to end."""
        return sum(self.lengths) - self.ended

    @property
    def observed(self) -> tuple[int, int]:
        """Epochs t in the present average, and T of its window; (0, 0) before the first."""
        begun = [window for window in self.windows or () if window.start < self.ended]
        if not begun:
            return 0, 0
        return min(self.ended, begun[-1].stop) - begun[-1].start, len(begun[-1])

    def epoch_end(self, model: nn.Module, replace: bool = True) -> bool:
        """Take in the weights at the end of an epoch; return True if they have become the average.

        The BatchNorm statistics then belong to other weights: `recompute_batchnorm` comes next.
        With `replace=False` the average is never applied.

        Raises:
            RuntimeError: if all phases are over.
            ValueError: if `model` is another network.
        """
        if not self.remaining:
            raise RuntimeError(
                f"all {self.ended} epochs of the {len(self.lengths)} phases are over"
            )
        window = next((w for w in self.windows or () if self.ended in w), None)
        if window is not None and self.average is not None:
            self.average.update(model, self.ended - window.start + 1, len(window))
        self.ended += 1
        replaced = replace and window is not None and self.ended == window.stop
        if replaced:
            self.copy_to(model)
        self.restart(model)
        return replaced

    def restart(self, model: nn.Module) -> None:
        """Start the window that is about to open from the weights of `model`.

        `epoch_end` does so. Call it only if something else has changed the weights since, as
        another averager may; in mid-window it does nothing.
        """
        if self.average is not None and any(w.start == self.ended for w in self.windows or ()):
            self.average.start(model)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` by the present average; leave its buffers alone.

        Raises:
            RuntimeError: if nothing has been averaged yet.
        """
        if self.average is None or self.observed[0] == 0:
            raise RuntimeError("nothing has been averaged yet: call epoch_end() after an epoch")
        self.average.copy_to(model)

    def averaged(
        self,
        model: nn.Module,
        batches: Iterable[Any] | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> nn.Module:
        """Return a copy of `model` that has the present average, in eval mode.

        Its BatchNorm statistics are those of `model`, or recomputed from `batches`, as by
        `recompute_batchnorm`. Of a network that cannot be copied, such as a sharded one, make a
        second instance and use `copy_to`.

        Raises:
            RuntimeError: if nothing has been averaged yet.
        """
        replica = copy.deepcopy(unwrapped(model))
        self.copy_to(replica)
        if batches is not None:
            recompute_batchnorm(replica, batches, forward)
        return replica.eval()

    def coefficients(self) -> list[float]:
        """Return α_1…α_t of the present average, which sum to 1; none before the first epoch."""
        t, epochs = self.observed
        return self.average.coefficients(t, epochs) if self.average is not None and t else []

    def finish(self) -> None:
        """Raise a RuntimeError if training ends inside a phase, whose average was not applied."""
        if self.remaining:
            raise RuntimeError(
                f"training ended after {self.ended} of {sum(self.lengths)} epochs, inside a phase, "
                "whose average was not applied"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what continuing needs, as tensors, numbers and strings."""
        average = {} if self.average is None else self.average.state_dict()
        return {"settings": self._settings(), "ended": self.ended, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: if it was saved by another kind of averager, with other phases or weights,
                or for another network.
        """
        for name, own in self._settings().items():
            if (saved := state["settings"].get(name)) != own:
                raise ValueError(f"{name}={own}: the state was saved with {name}={saved}")
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.ended = state["ended"]

    def _settings(self) -> dict[str, Any]:
        return {
            "averager": type(self).__name__,
            "lengths": self.lengths,
            "weights": None if self.average is None else _described(self.average.weights),
            "windows": [[window.start, window.stop] for window in self.windows or ()],
        }

    def _average_over(
        self,
        windows: Sequence[range],
        model: nn.Module,
        weights: Weights | RNA | None,
        device: torch.device | str,
        trainable_only: bool,
    ) -> None:
        self.windows = windows
        if isinstance(weights, RNA):
            self.average = RNAAverage(model, weights, trainable_only)
        else:
            self.average = WeightAverage(model, weights or Exponential(), device, trainable_only)
        self.restart(model)


class NoAveraging(Averager):
    """Never: the weights stay the optimizer's."""

    windows = ()


class Phasewise(Averager):
    """At the end of every phase: the paper's method (Algorithm 1).

    Each phase's average is its result and the start of the next. The optimizer's state is not
    touched.

    Args:
        model: the network in training, with the weights that training starts from.
        epochs: T_p, the number of epochs of every phase.
        weights: how the epochs of a phase are weighted; by default the paper's, with γ0 = 0.9.
        device: where the average is stored.
        lengths: the phases in any other unit than epochs, such as steps.
        trainable_only: leave out parameters that do not require a gradient now.
    """

    def __init__(
        self,
        model: nn.Module,
        epochs: Sequence[int] | None = None,
        weights: Weights | RNA | None = None,
        device: torch.device | str = "cpu",
        *,
        lengths: Sequence[int] | None = None,
        trainable_only: bool = False,
    ) -> None:
        super().__init__(model, epochs, lengths=lengths)
        self._average_over(self.phases, model, weights, device, trainable_only)


class AtEnd(Averager):
    """Once, at the end of training, as Polyak and Juditsky (1992) do: Table 1c's "at the end".

    The average is over all of the `training`, or over its last `phase`, as `window` says. The other
    arguments are those of `Phasewise`.

    Raises:
        ValueError: if `window` is neither of the two.
    """

    def __init__(
        self,
        model: nn.Module,
        epochs: Sequence[int] | None = None,
        weights: Weights | RNA | None = None,
        window: Literal["training", "phase"] = "training",
        device: torch.device | str = "cpu",
        *,
        lengths: Sequence[int] | None = None,
        trainable_only: bool = False,
    ) -> None:
        super().__init__(model, epochs, lengths=lengths)
        windows = {"training": range(sum(self.lengths)), "phase": self.phases[-1]}
        if window not in windows:
            raise ValueError(f"window={window!r}; choices: {', '.join(windows)}")
        self._average_over([windows[window]], model, weights, device, trainable_only)


def _described(weights: object) -> str:
    """Return the name and the public attributes of weights: `Exponential(gamma0=0.9)`."""
    settings = {k: v for k, v in getattr(weights, "__dict__", {}).items() if k[0] != "_"}
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return f"{type(weights).__name__}({arguments})"


def _phase_lengths(scheduler: LRScheduler, total_epochs: int) -> list[int]:
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "scheduler=ReduceLROnPlateau: its rates are not known before training; give epochs=[…]"
        )
    first = getattr(scheduler, "_schedulers", [scheduler])[0]  # of a chain, which does not count
    if steps := first.last_epoch:
        raise ValueError(f"scheduler: it has been stepped {steps} times; make the averager first")
    # A copy of the scheduler with another optimizer, which has the rates and no parameters.
    stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(()))])
    stand_in.param_groups = [
        copy.deepcopy({**group, "params": []}) for group in scheduler.optimizer.param_groups
    ]
    replica = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in})
    rates = [float(stand_in.param_groups[0]["lr"])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer makes no steps
        for _ in range(total_epochs - 1):
            replica.step()
            rates.append(float(stand_in.param_groups[0]["lr"]))
    ends = [epoch for epoch, (a, b) in enumerate(pairwise(rates), start=1) if b < a]
    if total_epochs > 2 and len(ends) == total_epochs - 1:
        raise ValueError(
            f"scheduler={type(scheduler).__name__}: it lowers the rate after every epoch, so there "
            "are no phases; give epochs=[…]"
        )
    return [b - a for a, b in pairwise([0, *ends, total_epochs])]
