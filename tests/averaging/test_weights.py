"""Averaging coefficients of the epochs in a window."""

from decimal import Decimal, localcontext
from functools import partial

import numpy as np
import pytest
from reference import alphas

from phaseavg.averaging import (
    BEMA,
    RNA,
    Blend,
    Exponential,
    FromDecay,
    HalfLife,
    Power,
    Tail,
    Uniform,
    reconstruct,
)

LENGTHS = [1, 2, 30, 80, 100]


def products(weights, epochs):
    """Return α_t = w_t Π_{s>t} (1 − w_s), the coefficients of the incremental form."""
    steps = np.array([weights.step(t, epochs) for t in range(1, epochs + 1)])
    return [step * np.prod(1 - steps[t + 1 :]) for t, step in enumerate(steps)]


@pytest.mark.parametrize("epochs", [2, 30, 100])
def test_gamma_near_one_causes_no_cancellation(epochs):
    # (1 − γ) / (1 − γ^t) evaluated without expm1 has errors up to 1e-8 here.
    gamma0 = 1 - 1e-9
    with localcontext(prec=60):
        gamma = Decimal(gamma0) ** (Decimal(80) / epochs)
        first = (1 - gamma) / (1 - gamma**epochs)
        expected = [float(first * gamma ** (epochs - t)) for t in range(1, epochs + 1)]
    np.testing.assert_allclose(products(Exponential(gamma0), epochs), expected, rtol=1e-12)


@pytest.mark.parametrize("epochs", LENGTHS)
@pytest.mark.parametrize("fraction", [0.05, 0.0822, 0.5, 2.0])
def test_the_half_life_is_a_fraction_of_the_window(fraction, epochs):
    ages = np.arange(epochs)[::-1] / epochs  # of the epochs, as a fraction of the window
    expected = 2.0 ** (-ages / fraction)
    np.testing.assert_allclose(
        products(HalfLife(fraction), epochs), expected / expected.sum(), rtol=1e-11
    )


@pytest.mark.parametrize(
    ("fraction", "epochs", "averaged"),
    [(0.25, 80, 20), (0.25, 10, 3), (0.1, 30, 3), (1, 7, 7), (0.01, 40, 1), (1 / 3, 9, 3)],
)
def test_a_tail_averages_the_last_epochs_alone(fraction, epochs, averaged):
    expected = [0.0] * (epochs - averaged) + [1 / averaged] * averaged
    assert products(Tail(fraction), epochs) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("epochs", LENGTHS)
@pytest.mark.parametrize(
    ("curve", "rate"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: np.cos(np.pi * x / 2) ** 2),
        ("1-sqrt", lambda x: 1 - x**0.5),
    ],
)
def test_coefficients_from_a_decay_scale_the_updates_by_it(curve, rate, epochs):
    # The average is θ_0 + Σ s_t (θ_t − θ_{t−1}), with s_t the sum of the coefficients from t on.
    alpha = products(FromDecay(curve), epochs)
    scales = np.cumsum(alpha[::-1])[::-1]
    np.testing.assert_allclose(scales, rate(np.arange(epochs) / epochs), rtol=1e-12, atol=1e-14)
    if curve == "linear":
        np.testing.assert_allclose(alpha, [1 / epochs] * epochs, rtol=1e-11)


@pytest.mark.parametrize(("gamma", "width"), [(16.97, 0.05), (6.94, 0.1), (0, 12**-0.5)])
def test_power_coefficients_have_the_relative_width_of_their_profile(gamma, width):
    times = np.arange(1, 2001) / 2000
    alpha = np.array(products(Power(gamma), 2000))
    assert alpha.sum() == pytest.approx(1, rel=1e-12)
    mean = alpha @ times
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)
    assert np.sqrt(alpha @ (times - mean) ** 2) == pytest.approx(width, rel=2e-3)
    if gamma == 0:
        np.testing.assert_allclose(alpha, 1 / 2000, rtol=1e-10)


def test_stored_averages_are_recovered_and_others_are_the_nearest_combination():
    stored = [(t, gamma) for t in (400, 800, 1200, 1600, 2000) for gamma in (16.97, 6.94)]
    np.testing.assert_allclose(reconstruct(stored, 2000, 6.94), [0] * 9 + [1], atol=1e-8)

    def profile(t, gamma):
        """The density on a grid of midpoints, as in the definition."""
        tau = (np.arange(20_000) + 0.5) / 10
        return np.where(tau < t, (gamma + 1) / t * (tau / t) ** gamma, 0.0)

    profiles = np.stack([profile(*pair) for pair in stored])
    for t, gamma in ((2000, 10.0), (2000, 25.0), (1500, 6.94), (2000, 4.0)):
        expected = np.linalg.lstsq(profiles.T, profile(t, gamma), rcond=None)[0]
        actual = np.array(reconstruct(stored, t, gamma))
        np.testing.assert_allclose(actual @ profiles, expected @ profiles, atol=2e-5)


@pytest.mark.parametrize("amount", [0, 0.25, 1])
@pytest.mark.parametrize("epochs", LENGTHS)
def test_a_blend_adds_the_last_weights(amount, epochs):
    expected = amount * alphas(0.9, epochs)
    expected[-1] += 1 - amount
    blend = Blend(Exponential(), amount)
    np.testing.assert_allclose(products(blend, epochs), expected, rtol=1e-12, atol=1e-16)
    assert [blend.step(t, epochs) for t in range(1, epochs)] == [
        Exponential().step(t, epochs) for t in range(1, epochs)
    ]


@pytest.mark.parametrize(
    ("create", "message"),
    [
        *(
            (partial(Exponential, gamma0), f"gamma0={gamma0} must lie strictly between 0 and 1")
            for gamma0 in (0.0, 1.0, -0.1, 1.5, float("nan"))
        ),
        (lambda: HalfLife(0.0), "fraction=0.0 must be between"),
        (lambda: HalfLife(1e-5), "fraction=1e-05 must be between"),
        (lambda: HalfLife(float("inf")), "fraction=inf must be between"),
        (lambda: HalfLife(float("nan")), "fraction=nan must be between"),
        (lambda: Power(-1), "gamma=-1 must be finite and not negative"),
        (lambda: reconstruct([(1, 2), (1, 2)], 2, 3), "two stored averages have the same t and"),
        (lambda: reconstruct([(0, 2)], 2, 3), "t=0 must be positive"),
        (lambda: reconstruct([(1, 2)], 2, float("nan")), "gamma=nan must be finite"),
        (lambda: Tail(0), "fraction=0 must be above 0 and at most 1"),
        (lambda: Tail(1.5), "fraction=1.5 must be above 0 and at most 1"),
        (lambda: FromDecay("linea"), "curve='linea'; choices: linear, cosine, 1-sqrt"),
        (lambda: Blend(Uniform(), -0.1), "amount=-0.1 must be between 0 and 1"),
        (lambda: Blend(Uniform(), 1.1), "amount=1.1 must be between 0 and 1"),
        (lambda: Blend(RNA("folder")), r"weights=.*: must be an object with a `step` method"),
        (lambda: BEMA(kappa=-1), "kappa=-1 must not be negative"),
        (lambda: BEMA(eta=-1), "eta=-1 must not be negative"),
        (lambda: BEMA(lag=-1), "lag=-1 must not be negative"),
        (lambda: RNA("anywhere", rho=-1e-9), "rho=-1e-09 must be finite and not negative"),
        (lambda: RNA("anywhere", rho=float("nan")), "rho=nan must be finite"),
        (lambda: RNA("anywhere", rho=float("inf")), "rho=inf must be finite"),
        (lambda: RNA("anywhere", window=0), "window=0 must be positive"),
    ],
)
def test_a_value_out_of_range_is_rejected(create, message):
    with pytest.raises(ValueError, match=message):
        create()
