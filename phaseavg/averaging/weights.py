"""Averaging coefficients of the epochs in a window.

Notation of the paper: T epochs in the window, t = 1…T, decay γ per epoch, coefficient α_t of θ_t.
"""

import math
from itertools import accumulate
from typing import Protocol, runtime_checkable


@runtime_checkable
class Weights(Protocol):
    """Coefficients α_1…α_T over a window of T epochs, in incremental form."""

    def step(self, t: int, epochs: int) -> float:
        """Return w_t in θ̄_t = θ̄_{t−1} + w_t (θ_t − θ̄_{t−1}).

        Args:
            t: epoch of the window, counted from 1; w_1 must be 1.
            epochs: T, the length of the window.
        """
        ...


class Exponential:
    """The paper's coefficients (equation 3): α_t = (1 − γ) γ^(T−t) / (1 − γ^T), γ = γ0^(80/T).

    The α_t printed above equation 4 of the paper differs: it does not sum to 1 and does not lead
    to equation 6.

    Args:
        gamma0: γ0, the decay per epoch in a window of 80 epochs.

    Raises:
        ValueError: if `gamma0` is not strictly between 0 and 1.
    """

    def __init__(self, gamma0: float = 0.9) -> None:
        if not 0.0 < gamma0 < 1.0:
            raise ValueError(f"gamma0={gamma0} must lie strictly between 0 and 1")
        self.gamma0 = gamma0

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = (1 − γ) / (1 − γ^t), which debiases the average at every t.

        γ = γ0^(80/T) makes the coefficients a function of t/T (Section 2.1.1). `expm1` avoids
        cancellation where γ is near 1.
        """
        log_gamma = 80 / epochs * math.log(self.gamma0)
        return math.expm1(log_gamma) / math.expm1(t * log_gamma)


class Uniform:
    """Equal coefficients α_t = 1/T, as in stochastic weight averaging (Izmailov et al., 2018)."""

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = 1/t."""
        return 1 / t


def coefficients(weights: Weights, epochs: int, observed: int) -> list[float]:
    """Return α_t = w_t Π_{s>t} (1 − w_s) of the first `observed` epochs; the α_t sum to 1."""
    steps = [weights.step(t, epochs) for t in range(1, observed + 1)]
    products = accumulate(reversed(steps), lambda product, w: product * (1 - w), initial=1.0)
    return [w * product for w, product in zip(reversed(steps), products, strict=False)][::-1]
