"""How the epochs of a window are weighted.

The paper's letters: T epochs in the window, t = 1…T, γ the decay per epoch, α_t the weight of θ_t.
"""

import math
from itertools import accumulate
from typing import Protocol, runtime_checkable


@runtime_checkable
class Weights(Protocol):
    """Weights α_1…α_T over a window of T epochs, in the incremental form that an average needs."""

    def step(self, t: int, epochs: int) -> float:
        """Return w_t in θ̄_t = θ̄_{t−1} + w_t (θ_t − θ̄_{t−1}).

        Args:
            t: epoch of the window, counted from 1; w_1 has to be 1.
            epochs: T, the length of the window.
        """
        ...


class Exponential:
    """The paper's weights (equation 3): α_t = (1 − γ) γ^(T−t) / (1 − γ^T), with γ = γ0^(80/T).

    The paper prints another α_t above its equation 4; with that one the weights do not sum to 1,
    and equation 6 does not follow.

    Args:
        gamma0: γ0, the decay per epoch of a window of 80 epochs.

    Raises:
        ValueError: if `gamma0` is not strictly between 0 and 1.
    """

    def __init__(self, gamma0: float = 0.9) -> None:
        if not 0.0 < gamma0 < 1.0:
            raise ValueError(f"gamma0={gamma0} must lie strictly between 0 and 1")
        self.gamma0 = gamma0

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = (1 − γ) / (1 − γ^t): exact at every t, without a zero start.

        γ = γ0^(80/T) makes the weights depend on t/T alone (Section 2.1.1); `expm1` keeps the last
        digits where γ is near 1.
        """
        log_gamma = 80 / epochs * math.log(self.gamma0)
        return math.expm1(log_gamma) / math.expm1(t * log_gamma)


class Uniform:
    """Equal weights α_t = 1/T, as in stochastic weight averaging (Izmailov et al., 2018)."""

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = 1/t."""
        return 1 / t


def coefficients(weights: Weights, epochs: int, observed: int) -> list[float]:
    """Return α_t = w_t Π_{s>t} (1 − w_s) of the first `observed` epochs; they sum to 1."""
    steps = [weights.step(t, epochs) for t in range(1, observed + 1)]
    left = accumulate(reversed(steps), lambda rest, w: rest * (1 - w), initial=1.0)
    return [w * rest for w, rest in zip(reversed(steps), left, strict=False)][::-1]
