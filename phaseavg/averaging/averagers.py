"""Averagers: replace the weights at phase ends, at the end of training, or never."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import ismethod
from itertools import accumulate, pairwise
from operator import index
from typing import Any, Literal, Self

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from phaseavg.averaging.average import WeightAverage, unwrapped
from phaseavg.averaging.batchnorm import recompute_batchnorm
from phaseavg.averaging.bema import BEMA, BEMAAverage
from phaseavg.averaging.rna import RNA, RNAAverage
from phaseavg.averaging.weights import Exponential, Weights, require_weights


class Averager:
    """Base class of all averagers; averages nothing itself.

    A subclass sets `average` and `windows`, or overrides `epoch_end`.

    Args:
        model: the model to train, with its initial weights.
        epochs: T_p, the number of epochs in each phase; or of other units, such as steps, if you
            call `epoch_end` after each unit.

    Raises:
        ValueError: if there are no phases, or a phase has no epochs.
        TypeError: if a length is not an integer.
    """

    average: WeightAverage | RNAAverage | None = None
    windows: Sequence[range] | None = None
    """The epochs, counted from 0, that each average covers; disjoint and in order. The average
    replaces the weights at the end of its window. None: unknown before training."""

    def __init__(self, model: nn.Module, epochs: Sequence[int]) -> None:
        if not isinstance(epochs, Iterable):
            raise TypeError(f"epochs={epochs!r}: must be a list, such as [80, 40, 40]")
        self.lengths = [index(length) for length in epochs]  # numpy's could not be loaded again
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"epochs={self.lengths} must be a list of positive numbers")
        self.ended = 0
        """Number of finished epochs."""

    @classmethod
    def from_scheduler(
        cls, model: nn.Module, scheduler: LRScheduler, total_epochs: int, **options: Any
    ) -> Self:
        """Return an averager whose phases end where a scheduler lowers the learning rate.

        A phase ends where the rate of any parameter group falls; the rates must be functions of the
        epoch alone. If the scheduler steps after every update, give `total_epochs` in updates.

        Raises:
            ValueError: if the scheduler has been stepped, or most of its phases would have a single
                epoch, as with a cosine.
        """
        return cls(model, _phase_lengths(scheduler, total_epochs), **options)

    @property
    def phases(self) -> list[range]:
        """The epochs of each phase, counted from 0."""
        return [range(a, b) for a, b in pairwise(accumulate(self.lengths, initial=0))]

    @property
    def remaining(self) -> int:
        """Number of epochs left."""
        return sum(self.lengths) - self.ended

    @property
    def observed(self) -> tuple[int, int]:
        """Epochs t in the current average, and T in its window; (0, 0) before the first epoch."""
        started = [window for window in self.windows or () if window.start < self.ended]
        if not started:
            return 0, 0
        return min(self.ended, started[-1].stop) - started[-1].start, len(started[-1])

    def epoch_end(self, model: nn.Module, replace: bool = True) -> bool:
        """Update the average after an epoch; return True if the average replaced the weights.

        The BatchNorm statistics then no longer match the weights: call `recompute_batchnorm`.
        `replace=False` updates the average but never replaces the weights.

        Raises:
            RuntimeError: if all phases are over.
            ValueError: if `model` is not the averaged network.
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
        """Start the next window from the weights of `model`; inside a window, do nothing.

        `epoch_end` calls this. Call it yourself only after other code, such as another averager,
        has changed the weights.
        """
        if self.average is not None and any(w.start == self.ended for w in self.windows or ()):
            self.average.start(model)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` with the current average; buffers are unchanged.

        Raises:
            RuntimeError: if no epoch has been averaged yet.
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
        """Return a copy of `model` with the current average, in eval mode.

        `batches` recompute the BatchNorm statistics (`recompute_batchnorm`, a collective); None
        keeps the statistics of `model`. If the model cannot be deep-copied, for example because it
        is sharded, or its `forward` has been replaced by a function that holds the original, as by
        `model.forward = torch.compile(model.forward)`, build a second model and call `copy_to`.

        Raises:
            RuntimeError: if no epoch has been averaged yet.
        """
        replica = copy.deepcopy(unwrapped(model))
        self.copy_to(replica)
        if batches is not None:
            recompute_batchnorm(replica, batches, forward)
        return replica.eval()

    def coefficients(self) -> list[float]:
        """Return α_1…α_t of the current average; empty before the first epoch.

        They sum to 1, except for `BEMA`, where θ_0 has the rest.
        """
        t, epochs = self.observed
        return self.average.coefficients(t, epochs) if self.average is not None and t else []

    def finish(self) -> None:
        """Raise a RuntimeError if training ended before the last phase did."""
        if self.remaining:
            raise RuntimeError(
                f"training ended after {self.ended} of the {sum(self.lengths)} epochs of the "
                "phases; the last average was not applied"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers and strings."""
        average = {} if self.average is None else self.average.state_dict()
        return {"settings": self._settings(), "ended": self.ended, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            ValueError: if the class, phases or coefficients of the saved averager differ, or the
                state was saved for another network.
        """
        if not isinstance(state, Mapping) or not state.keys() >= {"settings", "ended", "average"}:
            raise ValueError("state: is not from an averager's state_dict()")
        for name, value in self._settings().items():
            if (saved := state["settings"].get(name)) != value:
                raise ValueError(f"{name}={value}: the state was saved with {name}={saved}")
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.ended = state["ended"]

    def _settings(self) -> dict[str, Any]:
        return {
            "averager": type(self).__name__,
            "lengths": self.lengths,
            "weights": None if self.average is None else _describe(self.average.weights),
            "windows": [[window.start, window.stop] for window in self.windows or ()],
        }

    def _average_over(
        self,
        windows: Sequence[range],
        model: nn.Module,
        weights: Weights | RNA | BEMA | None,
        device: torch.device | str,
        trainable_only: bool,
    ) -> None:
        self.windows = windows
        weights = Exponential() if weights is None else weights
        # RNA and BEMA are more than coefficients of epochs, and have averages of their own.
        kind: Any = WeightAverage
        if isinstance(weights, RNA | BEMA):
            kind = RNAAverage if isinstance(weights, RNA) else BEMAAverage
        else:
            require_weights(weights, {len(window) for window in windows})
        self.average = kind(model, weights, device, trainable_only)
        self.restart(model)


class NoAveraging(Averager):
    """No averaging: the optimizer's weights are never replaced."""

    windows = ()


class Phasewise(Averager):
    """Phase-wise averaging, the paper's method (Algorithm 1).

    At the end of every phase the average of its epoch-end weights replaces the weights, and the
    next phase starts from the average. The optimizer state is unchanged.

    Args:
        model: the model to train, with its initial weights.
        epochs: T_p, the number of epochs in each phase.
        weights: the coefficients of a phase's epochs; by default the paper's, with γ0 = 0.9.
        device: the device that stores the average.
        trainable_only: average only parameters that require a gradient at construction.
    """

    def __init__(
        self,
        model: nn.Module,
        epochs: Sequence[int],
        weights: Weights | RNA | BEMA | None = None,
        device: torch.device | str = "cpu",
        *,
        trainable_only: bool = False,
    ) -> None:
        super().__init__(model, epochs)
        self._average_over(self.phases, model, weights, device, trainable_only)


class AtEnd(Averager):
    """Averaging once, at the end of training (Polyak and Juditsky, 1992): Table 1c's "at the end".

    `window="training"` averages all epochs, `window="phase"` the epochs of the last phase. The
    other arguments are documented in `Phasewise`.

    Raises:
        ValueError: if `window` is neither `training` nor `phase`.
    """

    def __init__(
        self,
        model: nn.Module,
        epochs: Sequence[int],
        weights: Weights | RNA | BEMA | None = None,
        window: Literal["training", "phase"] = "training",
        device: torch.device | str = "cpu",
        *,
        trainable_only: bool = False,
    ) -> None:
        super().__init__(model, epochs)
        windows = {"training": range(sum(self.lengths)), "phase": self.phases[-1]}
        if window not in windows:
            raise ValueError(f"window={window!r}; choices: {', '.join(windows)}")
        self._average_over([windows[window]], model, weights, device, trainable_only)


def _describe(weights: object) -> str:
    """Return the class name and the public attributes: `Exponential(gamma0=0.9)`."""
    attributes = getattr(weights, "__dict__", {}).items()
    settings = {k: v for k, v in attributes if k[0] != "_" and not callable(v)}

    def described(value: object) -> str:
        if isinstance(value, float):  # numpy's have another repr
            return repr(float(value))
        if hasattr(value, "step"):
            return _describe(value)
        # The repr of an object without its own has an address, which differs between processes.
        return type(value).__name__ if type(value).__repr__ is object.__repr__ else repr(value)

    arguments = ", ".join(f"{name}={described(value)}" for name, value in settings.items())
    return f"{type(weights).__name__}({arguments})"


def _phase_lengths(scheduler: LRScheduler, total_epochs: int) -> list[int]:
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "scheduler=ReduceLROnPlateau: rates are unknown before training; pass epochs=[…]"
        )
    first = getattr(scheduler, "_schedulers", [scheduler])[0]  # ChainedScheduler counts no steps
    if not hasattr(first, "last_epoch"):
        raise TypeError(
            f"scheduler={type(scheduler).__name__}: must be a scheduler of torch; with "
            "accelerate, pass epochs=[…]"
        )
    if steps := first.last_epoch:
        raise ValueError(f"scheduler.last_epoch={steps}: create the averager before stepping")
    # Step a copy of the scheduler, on an optimizer with the same groups but no parameters.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))])
    optimizer.param_groups = [
        copy.deepcopy({**group, "params": []}) for group in scheduler.optimizer.param_groups
    ]
    shared: dict[int, Any] = {id(scheduler.optimizer): optimizer}
    for one in [scheduler, *getattr(scheduler, "_schedulers", [])]:
        # A copy of a bound method would copy its object, such as the whole module.
        shared |= {id(f): f for f in getattr(one, "lr_lambdas", []) if ismethod(f)}
    replica = copy.deepcopy(scheduler, shared)
    rates = [[float(group["lr"]) for group in optimizer.param_groups]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the optimizer has not been stepped
        for _ in range(total_epochs - 1):
            replica.step()
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
    # A warm-up may end a rounding error above the full rate.
    ends = [
        epoch
        for epoch, pair in enumerate(pairwise(rates), start=1)
        if any(after < before * (1 - 1e-9) for before, after in zip(*pair, strict=True))
    ]
    lengths = [b - a for a, b in pairwise([0, *ends, total_epochs])]
    if total_epochs > 2 and lengths.count(1) > len(lengths) / 2:
        raise ValueError(
            f"scheduler={type(scheduler).__name__}: the learning rate falls after nearly every "
            "epoch, so there are no phases; pass epochs=[…]"
        )
    return lengths
