"""Bias-corrected exponential averages (BEMA)."""

from itertools import accumulate
from typing import Any

import torch
from torch import nn

from phaseavg.averaging.average import WeightAverage, is_averaged


class BEMA:
    """A bias-corrected exponential average, to follow the weights without their lag.

    With θ_0 the weights at the start of the window and t = 1…T:

        EMA_t = (1 − β_t) EMA_{t−1} + β_t θ_t,  EMA_0 = θ_0,  β_t = (ρ + t)^−κ,
        θ̄_t = EMA_t + α_t (θ_t − θ_0),  α_t = (ρ + t)^−η.

    The authors count t in optimizer steps.

    Args:
        kappa: κ, the power of β_t.
        eta: η, the power of α_t.
        lag: ρ.

    Raises:
        ValueError: if a power or ρ is negative.

    References:
        A. Block, C. Zhang, "EMA without the lag: bias-corrected iterate averaging schemes",
        arXiv:2508.00180, 2025.
    """

    def __init__(self, kappa: float = 0.5, eta: float = 0.2, lag: float = 10.0) -> None:
        for name, value in {"kappa": kappa, "eta": eta, "lag": lag}.items():
            if not value >= 0:
                raise ValueError(f"{name}={value} must not be negative")
        self.kappa, self.eta, self.lag = kappa, eta, lag

    @property
    def average(self) -> type["BEMAAverage"]:
        """The class of the average."""
        return BEMAAverage

    def beta(self, t: int) -> float:
        """Return β_t."""
        return float((self.lag + t) ** -self.kappa)

    def alpha(self, t: int) -> float:
        """Return α_t."""
        return float((self.lag + t) ** -self.eta)

    def coefficients(self, t: int) -> list[float]:
        """Return the coefficients of θ_1…θ_t in θ̄_t; θ_0 has 1 minus their sum."""
        betas = [self.beta(s) for s in range(1, t + 1)]
        kept = accumulate(reversed(betas), lambda product, b: product * (1 - b), initial=1.0)
        products = [b * k for b, k in zip(reversed(betas), kept, strict=False)][::-1]
        products[-1] += self.alpha(t)
        return products


class BEMAAverage(WeightAverage):
    """The average θ̄_t of `BEMA`; stores EMA_t and θ_0, twice the size of other averages.

    `copy_to` reads θ_t from the model that it overwrites, so it needs the model with the weights of
    the latest epoch.
    """

    weights: BEMA  # type: ignore[assignment]

    def __init__(
        self,
        model: nn.Module,
        weights: BEMA,
        device: torch.device | str = "cpu",
        trainable_only: bool = False,
    ) -> None:
        super().__init__(model, weights, device, trainable_only)  # type: ignore[arg-type]
        self.initial = [tensor.clone() for tensor in self.tensors]
        """θ_0 of the current window."""
        self._next = self.initial  # θ_0 of the next window, which may already be known
        self._t = 0

    def start(self, model: nn.Module) -> None:
        """Set θ_0 of the next window to the weights of `model`; the average is unchanged."""
        parameters = self._parameters.tensors(model).values()
        self._next = [
            p.to(old.device, old.dtype, copy=True)
            for p, old in zip(parameters, self.initial, strict=True)
        ]

    @torch.no_grad()
    def update(self, model: nn.Module, t: int, epochs: int) -> None:
        """Add the parameters of `model` as θ_t, with t = 1…`epochs`; t = 1 starts a new average."""
        if t == 1:
            self.initial = self._next
            for average, initial in zip(self.tensors, self.initial, strict=True):
                average.copy_(initial)
        parameters = self._parameters.tensors(model).values()
        for average, parameter in zip(self.tensors, parameters, strict=True):
            if is_averaged(average):
                latest = parameter.to(average.device, average.dtype)
                average.lerp_(latest, self.weights.beta(t))
            else:
                average.copy_(parameter)
        self._t = t

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model`, which are θ_t, with θ̄_t; buffers are unchanged."""
        alpha = self.weights.alpha(self._t)
        parameters = self._parameters.tensors(model).values()
        for parameter, average, initial in zip(parameters, self.tensors, self.initial, strict=True):
            if is_averaged(average):
                latest = parameter.to(average.device, average.dtype)
                parameter.copy_(average + alpha * (latest - initial))
            else:
                parameter.copy_(average)

    def coefficients(self, t: int, epochs: int) -> list[float]:
        """Return the coefficients of θ_1…θ_t; θ_0 has 1 minus their sum."""
        return self.weights.coefficients(t)

    def storage(self, epochs: int) -> tuple[int, str]:
        """Return the size of EMA_t and θ_0 in bytes, and their device."""
        size, device = super().storage(epochs)
        return 2 * size, device

    def state_dict(self) -> dict[str, Any]:
        """Return EMA_t, θ_0, θ_0 of the next window, and t; for DTensors, the local shards."""
        state = super().state_dict()
        return state | {"initial": self.initial, "next": self._next, "t": self._t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            ValueError: if the state was saved for another network.
        """
        super().load_state_dict(state)
        places = [(tensor.device, tensor.dtype) for tensor in self.tensors]

        def copies(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            return [t.to(*place, copy=True) for t, place in zip(tensors, places, strict=True)]

        self.initial, self._next = copies(state["initial"]), copies(state["next"])
        self._t = state["t"]
