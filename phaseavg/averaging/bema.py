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
    """The average θ̄_t of `BEMA`; also stores EMA_t and θ_0, three times the size of the weights."""

    weights: BEMA  # type: ignore[assignment]

    def __init__(
        self,
        model: nn.Module,
        weights: BEMA,
        device: torch.device | str = "cpu",
        trainable_only: bool = False,
    ) -> None:
        super().__init__(model, weights, device, trainable_only)  # type: ignore[arg-type]
        self._initial = [tensor.clone() for tensor in self.tensors]  # θ_0
        self._ema = [tensor.clone() for tensor in self.tensors]  # EMA_t

    @torch.no_grad()
    def start(self, model: nn.Module) -> None:
        """Set θ_0 of the next window to the weights of `model`; θ̄ is unchanged."""
        parameters = self._parameters.tensors(model).values()
        for initial, ema, parameter in zip(self._initial, self._ema, parameters, strict=True):
            initial.copy_(parameter)
            ema.copy_(parameter)

    @torch.no_grad()
    def update(self, model: nn.Module, t: int, epochs: int) -> None:
        """Add the parameters of `model` as θ_t, with t = 1…`epochs`, after `start`."""
        alpha, beta = self.weights.alpha(t), self.weights.beta(t)
        parameters = self._parameters.trained(model).values()
        for average, ema, initial, parameter in zip(
            self.tensors, self._ema, self._initial, parameters, strict=True
        ):
            if is_averaged(average):
                latest = parameter.to(average.device, average.dtype)
                ema.lerp_(latest, beta)
                torch.add(ema, latest - initial, alpha=alpha, out=average)
            else:
                average.copy_(parameter)

    def coefficients(self, t: int, epochs: int) -> list[float]:
        """Return the coefficients of θ_1…θ_t; θ_0 has 1 minus their sum."""
        return self.weights.coefficients(t)

    def state_dict(self) -> dict[str, Any]:
        """Return θ̄_t, EMA_t and θ_0; of a sharded model, this process's shards."""
        return super().state_dict() | {"ema": self._ema, "initial": self._initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            ValueError: if the state was saved for another network.
        """
        super().load_state_dict(state)
        for name, tensors in (("ema", self._ema), ("initial", self._initial)):
            for tensor, saved in zip(tensors, state[name], strict=True):
                tensor.copy_(saved)
