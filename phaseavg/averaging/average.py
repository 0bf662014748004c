"""The running average of a model's parameters."""

from itertools import compress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phaseavg.averaging.weights import Weights, coefficients


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside of `torch.compile` and (distributed) data-parallel wrappers."""
    compiled = getattr(model, "_orig_mod", None)  # importing torch.compile's class takes seconds
    if isinstance(compiled, nn.Module):
        return unwrapped(compiled)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    return model


def is_averaged(parameter: Tensor) -> bool:
    """Return whether a parameter is averaged; integers, booleans and 8-bit floats are copied."""
    return parameter.is_complex() or (parameter.is_floating_point() and parameter.itemsize > 1)


class Parameters:
    """The parameters of a model that are averaged: all, or those that require a gradient now."""

    def __init__(self, model: nn.Module, trainable_only: bool) -> None:
        parameters = list(unwrapped(model).parameters())
        self._shapes = [p.shape for p in parameters]
        self._chosen = [p.requires_grad or not trainable_only for p in parameters]

    def named(self, model: nn.Module) -> dict[str, Tensor]:
        """Return them by name, detached; of sharded ones (DTensor) this process's part.

        Raises:
            ValueError: if `model` is another network.
        """
        parameters = dict(unwrapped(model).named_parameters())
        if [p.shape for p in parameters.values()] != self._shapes:
            raise ValueError(
                "model: its parameters differ in number or shape from those of the averaged model"
            )
        chosen = {name: p.detach() for name, p in compress(parameters.items(), self._chosen)}
        return {n: p.to_local() if hasattr(p, "to_local") else p for n, p in chosen.items()}


class WeightAverage:
    """The debiased average θ̄_t = θ̄_{t−1} + w_t (θ_t − θ̄_{t−1}).

    Equal at every t to the paper's zero-started θ̄ ← γ θ̄ + (1 − γ) θ_t divided by 1 − γ^t
    (Algorithm 1), so it is usable at any moment of a window. A copy-started exponential average is
    something else.

    Parameters in half precision are averaged in float32, or small updates would be rounded away.
    Integers, booleans and 8-bit floats are copied. Buffers are not averaged: BatchNorm statistics
    have to be recomputed (`recompute_batchnorm`).

    Args:
        model: whose parameters are averaged.
        weights: how the epochs are weighted.
        device: where θ̄ is stored.
        trainable_only: leave out parameters that do not require a gradient now.
    """

    notes: ClassVar[dict[str, Any]] = {}
    """What a record should hold of how the coefficients were computed."""

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        device: torch.device | str = "cpu",
        trainable_only: bool = False,
    ) -> None:
        self.weights, self._device = weights, str(device)
        self._parameters = Parameters(model, trainable_only)
        parameters = self._parameters.named(model).values()
        dtypes = [
            torch.promote_types(p.dtype, torch.float32) if is_averaged(p) else p.dtype
            for p in parameters
        ]
        self.tensors = [
            p.to(device, dtype, copy=True) for p, dtype in zip(parameters, dtypes, strict=True)
        ]
        """θ̄, in the order of the model's parameters; not yet an average before the first update."""

    def start(self, model: nn.Module) -> None:
        """Do nothing: θ_0, the weights before the window's first epoch, is not averaged."""

    @torch.no_grad()
    def update(self, model: nn.Module, t: int, epochs: int) -> None:
        """Take the weights of `model` as θ_t of a window of `epochs` epochs; t = 1 opens it."""
        weight = self.weights.step(t, epochs)
        parameters = self._parameters.named(model).values()
        for average, parameter in zip(self.tensors, parameters, strict=True):
            if t == 1 or not is_averaged(average):
                average.copy_(parameter)
            else:
                average.lerp_(parameter.to(average.device, average.dtype), weight)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` by the average; leave its buffers alone."""
        parameters = self._parameters.named(model).values()
        for parameter, average in zip(parameters, self.tensors, strict=True):
            parameter.copy_(average)

    def coefficients(self, t: int, epochs: int) -> list[float]:
        """Return α_1…α_t, which sum to 1."""
        return coefficients(self.weights, epochs, t)

    def storage(self, epochs: int) -> tuple[int, str]:
        """Return the bytes of θ̄, whatever the number of epochs, and its device."""
        return sum(tensor.nbytes for tensor in self.tensors), self._device

    def files(self) -> list[Path]:
        """Return no files: the state holds everything."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return θ̄; under DTensors the part that this process holds."""
        return {"tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: if it is the state of another network.
        """
        own, saved = ([(t.shape, t.dtype) for t in ts] for ts in (self.tensors, state["tensors"]))
        if own != saved:
            raise ValueError("average: the state was saved for parameters of other shapes or types")
        for average, tensor in zip(self.tensors, state["tensors"], strict=True):
            average.copy_(tensor)
