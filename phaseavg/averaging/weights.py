"""Averaging coefficients of the epochs in a window.

Notation of the paper: T epochs in the window, t = 1…T, decay γ per epoch, coefficient α_t of θ_t.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch


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


def require_weights(weights: object, lengths: Iterable[int] = ()) -> Weights:
    """Return `weights`.

    Args:
        weights: the rule for the coefficients.
        lengths: T of the windows, in epochs, for which to check w_1.

    Raises:
        ValueError: if it is not an object with a `step` method, or w_1 is not 1.
    """
    if isinstance(weights, type) or not isinstance(weights, Weights):
        raise ValueError(
            f"weights={weights!r}: must be an object with a `step` method; for example "
            "Exponential(0.9)"
        )
    name = type(weights).__name__
    for epochs in lengths:
        try:
            first = float(weights.step(1, epochs))
        except TypeError as error:
            reason = f"step(t, T) must return w_t ({error})"
            raise ValueError(f"weights={name}: {reason}") from error
        if not math.isclose(first, 1):  # an average starts as a copy of θ_1
            raise ValueError(f"weights={name}: step(1, {epochs}) must be 1, not {first}")
    return weights


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
        self.gamma0 = float(gamma0)

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = (1 − γ) / (1 − γ^t), which debiases the average at every t.

        γ = γ0^(80/T) makes the coefficients a function of t/T (Section 2.1.1). `expm1` avoids
        cancellation where γ is near 1.
        """
        log_gamma = 80 / epochs * math.log(self.gamma0)
        return math.expm1(log_gamma) / math.expm1(t * log_gamma)


class HalfLife(Exponential):
    """Exponential coefficients that halve every `fraction` × T epochs: γ0 = 2^(−1 / (80 fraction)).

    Args:
        fraction: the half-life as a fraction of the window; 0.0822 is γ0 = 0.9.

    Raises:
        ValueError: if `fraction` is not positive, or so small or large that γ0 is 0 or 1.
    """

    def __init__(self, fraction: float) -> None:
        gamma0 = 0.5 ** (1 / (80 * fraction)) if fraction > 0 else 0.0
        if not 0 < gamma0 < 1:  # also after underflow and rounding
            raise ValueError(f"fraction={fraction} must be between 0.0001 and 1e13")
        self.fraction = float(fraction)
        super().__init__(gamma0)


class Uniform:
    """Equal coefficients α_t = 1/T, as in stochastic weight averaging (Izmailov et al., 2018)."""

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = 1/t."""
        return 1 / t


class Tail:
    """Equal coefficients α_t = 1/k of the last k = ⌈fraction × T⌉ epochs of a window, else 0.

    Until these epochs, the average is the latest weights.

    Args:
        fraction: the averaged fraction of the window.

    Raises:
        ValueError: if `fraction` is not above 0 and at most 1.
    """

    def __init__(self, fraction: float) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction} must be above 0 and at most 1")
        self.fraction = float(fraction)

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = 1 / (t − (T − k)), or 1 before the last k epochs."""
        # Without rounding, 0.1 × 30 would be a little above 3.
        averaged = math.ceil(round(self.fraction * epochs, 9))
        return 1 / max(t - (epochs - averaged), 1)


class Power:
    """Power-function coefficients α_t ∝ t^γ, approximately (Karras et al., 2024).

    As they grow with t in any window, averages at several t can be combined into averages with
    another γ after the training (`reconstruct`).

    Args:
        gamma: γ. Their σ_rel = √((γ + 1) / ((γ + 2)² (γ + 3))) is 0.05 for γ = 16.97 and 0.1 for
            γ = 6.94.

    Raises:
        ValueError: if `gamma` is negative or not finite.

    References:
        T. Karras et al., "Analyzing and improving the training dynamics of diffusion models",
        CVPR 2024, equations 125 and 126 and algorithm 3.
    """

    def __init__(self, gamma: float) -> None:
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma={gamma} must be finite and not negative")
        self.gamma = float(gamma)

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = 1 − (1 − 1/t)^(γ + 1)."""
        return float(1 - (1 - 1 / t) ** (self.gamma + 1))


def reconstruct(stored: Sequence[tuple[float, float]], t: float, gamma: float) -> list[float]:
    """Return the coefficients of stored power-function averages that approximate another one.

    They minimise the squared distance between the profiles, with p(τ) ∝ τ^γ on [0, t].

    Args:
        stored: for each stored average, its time t (epochs or steps) and its γ.
        t: the time of the wanted average.
        gamma: γ of the wanted average.

    Raises:
        ValueError: if a time is not positive, two stored averages are equal, or a γ is too large.
    """
    for time, power in [*stored, (t, gamma)]:
        Power(power)
        if not 0 < time < math.inf:
            raise ValueError(f"t={time} must be positive and finite")
    if len({*stored}) < len(stored):
        raise ValueError("two stored averages have the same t and gamma")

    def product(one: tuple[float, float], other: tuple[float, float]) -> float:
        """Return ∫ p q dτ for the profiles p and q."""
        (early, a), (late, b) = sorted((one, other))
        return float((a + 1) * (b + 1) * (early / late) ** b / (a + b + 1) / late)

    gram = torch.tensor([[product(p, q) for q in stored] for p in stored], dtype=torch.float64)
    wanted = torch.tensor([[product(p, (t, gamma))] for p in stored], dtype=torch.float64)
    if not torch.cat([gram, wanted], 1).isfinite().all():
        raise ValueError("a gamma is too large")
    solution: list[float] = torch.linalg.lstsq(gram, wanted, driver="gelsd").solution[:, 0].tolist()
    return solution


CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}
"""Learning rates relative to the constant rate, falling from 1 at x = 0 to 0 at x = 1."""


class FromDecay:
    """The coefficients to which a decayed learning rate corresponds (WSM, Tian et al., 2025).

    Σ_t α_t θ_t = θ_0 + Σ_t s_t (θ_t − θ_{t−1}) with s_t = α_t + … + α_T: the average scales the
    t-th epoch's update by s_t. Here s_t = f((t − 1) / T), so α_t = f((t − 1) / T) − f(t / T).
    `linear` gives equal coefficients.

    Args:
        curve: f, a key of `CURVES`.

    Raises:
        ValueError: if there is no such curve.

    References:
        C. Tian et al., "WSM: Decay-free learning rate schedule via checkpoint merging for LLM
        pre-training", arXiv:2507.17634, 2025.
        A. Hägele et al., "Scaling laws and compute-optimal training beyond fixed training
        durations", NeurIPS 2024: the curve 1 − √x.
    """

    def __init__(self, curve: str = "1-sqrt") -> None:
        if curve not in CURVES:
            raise ValueError(f"curve={curve!r}; choices: {', '.join(CURVES)}")
        self.curve = curve

    def step(self, t: int, epochs: int) -> float:
        """Return w_t = α_t / (α_1 + … + α_t)."""
        before, after = (CURVES[self.curve](n / epochs) for n in (t - 1, t))
        return (before - after) / (1 - after)


class Blend:
    """A blend (1 − λ) θ_T + λ θ̄ of a window's last weights and its average θ̄.

    Before the last epoch, it is the average alone.

    Args:
        weights: the coefficients of θ̄.
        amount: λ; 1 is the average, 0 the last weights.

    Raises:
        ValueError: if `amount` is not between 0 and 1, or `weights`, such as `RNA`, has no `step`.
    """

    def __init__(self, weights: Weights, amount: float = 0.5) -> None:
        if not 0 <= amount <= 1:
            raise ValueError(f"amount={amount} must be between 0 and 1")
        self.weights, self.amount = require_weights(weights), float(amount)

    def step(self, t: int, epochs: int) -> float:
        """Return w_t of the average; at t = T, 1 − λ (1 − w_T)."""
        step = self.weights.step(t, epochs)
        return step if t < epochs else 1 - self.amount * (1 - step)


def coefficients(weights: Weights, epochs: int, observed: int) -> list[float]:
    """Return the coefficients α_1…α_t of the first t = `observed` epochs; they sum to 1."""
    return unrolled([float(weights.step(t, epochs)) for t in range(1, observed + 1)])


def unrolled(steps: Sequence[float]) -> list[float]:
    """Return α_t = w_t Π_{s>t} (1 − w_s), given w_1, w_2, …."""
    products = accumulate(reversed(steps), lambda product, w: product * (1 - w), initial=1.0)
    return [w * product for w, product in zip(reversed(steps), products, strict=False)][::-1]
