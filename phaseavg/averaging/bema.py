"""Bias-corrected exponential averages (BEMA)."""

import torch
from torch import nn

from phaseavg.averaging.average import WeightAverage, is_averaged
from phaseavg.averaging.weights import unrolled


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
        self.kappa, self.eta, self.lag = float(kappa), float(eta), float(lag)

    def beta(self, t: int) -> float:
        """Return β_t."""
        return float((self.lag + t) ** -self.kappa)

    def alpha(self, t: int) -> float:
        """Return α_t."""
        return float((self.lag + t) ** -self.eta)

    def coefficients(self, t: int) -> list[float]:
        """Return the coefficients of θ_1…θ_t in θ̄_t; θ_0 has 1 minus their sum."""
        coefficients = unrolled([self.beta(s) for s in range(1, t + 1)])
        coefficients[-1] += self.alpha(t)
        return coefficients


class BEMAAverage(WeightAverage):
    """The average θ̄_t of `BEMA`; also stores EMA_t and θ_0, three times the size of the weights."""

    STORED = ("tensors", "ema", "initial")
    weights: BEMA  # type: ignore[assignment]

    def start(self, model: nn.Module) -> None:
        """Set θ_0 of the next window to the weights of `model`; θ̄ is unchanged."""
        self.initial = self._copies(model)
        self.ema = self._copies(model)

    @torch.no_grad()
    def update(self, model: nn.Module, t: int, epochs: int) -> None:
        """Add the parameters of `model` as θ_t, with t = 1…`epochs`, after `start`."""
        alpha, beta = self.weights.alpha(t), self.weights.beta(t)
        parameters = self._parameters.trained(model).values()
        for average, ema, initial, parameter in zip(
            self.tensors, self.ema, self.initial, parameters, strict=True
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
