"""The running average of a model's parameters."""

import re
from itertools import compress
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from phaseavg.averaging.weights import Weights, coefficients


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile` and (distributed) data-parallel wrappers."""
    compiled = getattr(model, "_orig_mod", None)  # importing OptimizedModule takes seconds
    if isinstance(compiled, nn.Module):
        return unwrapped(compiled)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    return model


def is_averaged(parameter: Tensor) -> bool:
    """Return whether a parameter is averaged; integers, booleans and 8-bit floats are copied."""
    return parameter.is_complex() or (parameter.is_floating_point() and parameter.itemsize > 1)


WRAPPERS = re.compile(r"\b(_orig_mod|module|_checkpoint_wrapped_module)\.")
"""What `torch.compile`, DDP and activation checkpointing of submodules add to names."""


class ParameterSelection:
    """The parameters to average: all, or those that were trainable at construction.

    `tensors` also accepts another instance of the model, such as the one that gets the average.
    """

    def __init__(self, model: nn.Module, trainable_only: bool) -> None:
        parameters = dict(unwrapped(model).named_parameters())
        self._shapes = [p.shape for p in parameters.values()]
        self._selected = [p.requires_grad or not trainable_only for p in parameters.values()]
        self.names = [WRAPPERS.sub("", name) for name in compress(parameters, self._selected)]

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the selected parameters by name, detached; a DTensor gives its local shard.

        Raises:
            ValueError: if the parameters of `model` differ in number or shape.
        """
        for module in model.modules():
            # After an evaluation, fully_shard leaves its root whole.
            if callable(reshard := getattr(module, "reshard", None)):
                reshard()
        parameters = dict(unwrapped(model).named_parameters())
        if [p.shape for p in parameters.values()] != self._shapes:
            raise ValueError(
                "model: the parameters differ in number or shape from the averaged model; pass the "
                "model that the averager was created with"
            )
        detached = {name: p.detach() for name, p in compress(parameters.items(), self._selected)}
        return {n: p.to_local() if hasattr(p, "to_local") else p for n, p in detached.items()}

    def trained(self, model: nn.Module) -> dict[str, Tensor]:
        """Return `tensors` of the model that is trained.

        Raises:
            ValueError: see `tensors`; or if a parameter has become trainable since construction.
        """
        tensors = self.tensors(model)
        parameters = unwrapped(model).named_parameters()
        for (name, parameter), selected in zip(parameters, self._selected, strict=True):
            if parameter.requires_grad and not selected:
                raise ValueError(
                    f"trainable_only=True: {name} was frozen when the averager was created; create "
                    "it later, or use trainable_only=False"
                )
        return tensors


class WeightAverage:
    """The debiased average θ̄_t = θ̄_{t−1} + w_t (θ_t − θ̄_{t−1}).

    With exponential coefficients it equals the paper's m_t / (1 − γ^t), where m_0 = 0 and
    m_t = γ m_{t−1} + (1 − γ) θ_t (Algorithm 1), so that it is usable at every t. The usual
    exponential average, which starts from m_0 = θ_0, weights the epochs differently. A window is
    the sequence of epochs that are averaged together, such as a phase.

    Half-precision parameters are averaged in float32, because half precision rounds small updates
    away. Integers, booleans and 8-bit floats are copied. Buffers are not averaged: recompute
    BatchNorm statistics with `recompute_batchnorm`.

    Args:
        model: the model to average.
        weights: the rule for the coefficients w_t of the epochs.
        device: the device that stores θ̄.
        trainable_only: average only parameters that require a gradient at construction.
    """

    STORED: ClassVar[tuple[str, ...]] = ("tensors",)
    """Attributes with a list of tensors, one for each parameter; together they are the state."""

    notes: ClassVar[dict[str, Any]] = {}
    """Diagnostics of the coefficients, for the run's record; only learnt coefficients have any."""

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        device: torch.device | str = "cpu",
        trainable_only: bool = False,
    ) -> None:
        self.weights, self.device = weights, device
        self._parameters = ParameterSelection(model, trainable_only)
        self.tensors = self._copies(model)
        """θ̄, in the order of the model's parameters; initial weights until the first update."""
        is_sharded = any(hasattr(p, "to_local") for p in model.parameters())
        self._shard = torch.distributed.get_rank() if is_sharded else None
        self.start(model)

    def _copies(self, model: nn.Module) -> list[Tensor]:
        """Return copies of the parameters, on `device` and at least in float32."""
        return [
            p.to(
                self.device,
                torch.promote_types(p.dtype, torch.float32) if is_averaged(p) else p.dtype,
                copy=True,
            )
            for p in self._parameters.tensors(model).values()
        ]

    def start(self, model: nn.Module) -> None:
        """Do nothing: θ_0, the weights at the start of the window, does not enter the average."""

    @torch.no_grad()
    def update(self, model: nn.Module, t: int, epochs: int) -> None:
        """Add the parameters of `model` as θ_t, with t = 1…`epochs`; t = 1 starts a new average."""
        weight = self.weights.step(t, epochs)
        parameters = self._parameters.trained(model).values()
        for average, parameter in zip(self.tensors, parameters, strict=True):
            if t == 1 or not is_averaged(average):
                average.copy_(parameter)
            else:
                average.lerp_(parameter.to(average.device, average.dtype), weight)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` with the average; buffers are unchanged."""
        parameters = self._parameters.tensors(model).values()
        for parameter, average in zip(parameters, self.tensors, strict=True):
            parameter.copy_(average)

    def coefficients(self, t: int, epochs: int) -> list[float]:
        """Return α_1…α_t, which sum to 1."""
        return coefficients(self.weights, epochs, t)

    def files(self) -> list[Path]:
        """Return an empty list: the state refers to no files."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return θ̄ and the other tensors of the average; of a sharded model, this process's."""
        return {name: getattr(self, name) for name in self.STORED} | {
            "names": self._parameters.names,
            "shard": self._shard,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            ValueError: if the state was saved for another network, or by another process of a
                sharded model.
        """
        if (shard := state.get("shard")) != self._shard:
            raise ValueError(
                f"average: the state has the shards of process {shard}, not {self._shard}; save "
                "and load the state of a sharded model in every process"
            )
        own, saved = ([t for name in self.STORED for t in d[name]] for d in (vars(self), state))
        if [(t.shape, t.dtype) for t in own] != [(t.shape, t.dtype) for t in saved]:
            raise ValueError("average: the state was saved for parameters of other shapes or types")
        names = self._parameters.names
        for name, other in zip(names, state.get("names", names), strict=True):
            if name != other:
                raise ValueError(f"average: the state was saved with {other} in place of {name}")
        for tensor, value in zip(own, saved, strict=True):
            tensor.copy_(value)
