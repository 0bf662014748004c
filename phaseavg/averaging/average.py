"""The running average of a model's parameters."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phaseavg.averaging.weights import Weights, coefficients

AVERAGED_AS = {
    torch.float16: torch.float32,  # in which small updates would be rounded away
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}
"""The dtype in which parameters of a dtype are averaged; those of any other are copied."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside of `torch.compile` and (distributed) data-parallel wrappers."""
    compiled = getattr(model, "_orig_mod", None)  # importing torch.compile's class takes seconds
    if isinstance(compiled, nn.Module):
        return unwrapped(compiled)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    return model


class Parameters:
    """The parameters of a model that are averaged.

    Args:
        model: the model, wrapped by `torch.compile` or DDP or not.
        trainable_only: leave out those that do not require a gradient now.
    """

    def __init__(self, model: nn.Module, trainable_only: bool = False) -> None:
        parameters = list(unwrapped(model).parameters())
        self._chosen = [p.requires_grad or not trainable_only for p in parameters]
        self._shapes = [p.shape for p in parameters]

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
        chosen = {
            name: p.detach()
            for (name, p), chosen in zip(parameters.items(), self._chosen, strict=True)
            if chosen
        }
        return {n: p.to_local() if hasattr(p, "to_local") else p for n, p in chosen.items()}

    def of(self, model: nn.Module) -> list[Tensor]:
        """Return the same without names, in the order of the model's parameters."""
        return list(self.named(model).values())


class WeightAverage:
    """The debiased average θ̄_t = θ̄_{t−1} + w_t (θ_t − θ̄_{t−1}).

    Equal at every t to the paper's zero-started θ̄ ← γ θ̄ + (1 − γ) θ_t divided by 1 − γ^t
    (Algorithm 1), so it is usable at any moment of a window. A copy-started exponential average is
    something else.

    Parameters in half precision are averaged in float32. Parameters of integers, booleans or
    8-bit floats are copied. Buffers are not averaged: BatchNorm statistics have to be recomputed
    (`recompute_batchnorm`).

    Args:
        model: whose parameters are averaged.
        weights: how the epochs are weighted.
        device: where θ̄ is stored.
        trainable_only: leave out parameters that do not require a gradient now.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        device: torch.device | str = "cpu",
        trainable_only: bool = False,
    ) -> None:
        self.weights = weights
        self._parameters = Parameters(model, trainable_only)
        self.tensors = [
            p.to(device, AVERAGED_AS.get(p.dtype, p.dtype), copy=True)
            for p in self._parameters.of(model)
        ]
        """θ̄, in the order of the model's parameters; not yet an average before the first update."""

    def start(self, model: nn.Module) -> None:
        """Do nothing: θ_0, the weights before the window's first epoch, is not averaged."""

    @torch.no_grad()
    def update(self, model: nn.Module, t: int, epochs: int) -> None:
        """Take the weights of `model` as θ_t of a window of `epochs` epochs; t = 1 opens it."""
        weight = 1.0 if t == 1 else self.weights.step(t, epochs)  # a float64, once for all
        averages, parameters = [], []  # that are beside each other: one call for all
        for average, parameter in zip(self.tensors, self._parameters.of(model), strict=True):
            if t == 1 or average.dtype not in AVERAGED_AS:
                average.copy_(parameter)
            elif (average.device, average.dtype) == (parameter.device, parameter.dtype):
                averages.append(average)
                parameters.append(parameter)
            else:  # one after the other, without memory for all
                average.lerp_(parameter.to(average.device, average.dtype), weight)
        if averages:
            torch._foreach_lerp_(averages, parameters, weight)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` by the average; leave its buffers alone."""
        for parameter, average in zip(self._parameters.of(model), self.tensors, strict=True):
            parameter.copy_(average)

    def coefficients(self, t: int, epochs: int) -> list[float]:
        """Return α_1…α_t, which sum to 1."""
        return coefficients(self.weights, epochs, t)

    @property
    def notes(self) -> dict[str, Any]:
        """What a record should hold of how the coefficients were computed: nothing."""
        return {}

    def storage(self, epochs: int) -> tuple[int, str]:
        """Return the bytes of θ̄, whatever the number of epochs, and its device."""
        device = self.tensors[0].device if self.tensors else "cpu"
        return sum(t.numel() * t.element_size() for t in self.tensors), str(device)

    def files(self) -> list[Path]:
        """Return none: the state holds everything."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return θ̄; under DTensors the part that this process holds."""
        return {"tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: if it is the state of another network.
        """
        own, saved = (
            [(tuple(t.shape), t.dtype) for t in ts] for ts in (self.tensors, state["tensors"])
        )
        if own != saved:
            raise ValueError("average: the state was saved for parameters of other shapes or types")
        for average, tensor in zip(self.tensors, state["tensors"], strict=True):
            average.copy_(tensor)
