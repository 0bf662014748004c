"""Averaging coefficients of the epochs in a window."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from reference import alphas

from phaseavg.averaging import Exponential, Uniform

GAMMA0S = [0.99, 0.95, 0.9, 0.8, 0.5]
LENGTHS = [1, 2, 30, 80, 100]


def products(weights, epochs):
    """Return α_t = w_t Π_{s>t} (1 − w_s), the coefficients of the incremental form."""
    steps = np.array([weights.step(t, epochs) for t in range(1, epochs + 1)])
    return [step * np.prod(1 - steps[t + 1 :]) for t, step in enumerate(steps)]


@pytest.mark.parametrize("epochs", LENGTHS)
@pytest.mark.parametrize("gamma0", GAMMA0S)
def test_exponential_coefficients_match_the_closed_form_and_sum_to_one(gamma0, epochs):
    actual = products(Exponential(gamma0), epochs)
    np.testing.assert_allclose(actual, alphas(gamma0, epochs), rtol=1e-12)
    assert sum(actual) == pytest.approx(1, rel=1e-13)


@pytest.mark.parametrize("weights", [*map(Exponential, GAMMA0S), Uniform()])
def test_the_first_epoch_has_step_one(weights):
    assert all(weights.step(1, epochs) == 1.0 for epochs in LENGTHS)


def test_gamma0_is_the_decay_in_80_epochs_and_scales_with_the_length():
    for epochs in LENGTHS[1:]:
        *_, before, last = products(Exponential(), epochs)
        assert (before / last) ** epochs == pytest.approx(0.9**80, rel=1e-12)


@pytest.mark.parametrize("epochs", [2, 30, 100])
def test_gamma_near_one_causes_no_cancellation(epochs):
    # (1 − γ) / (1 − γ^t) evaluated without expm1 has errors up to 1e-8 here.
    gamma0 = 1 - 1e-9
    with localcontext(prec=60):
        gamma = Decimal(gamma0) ** (Decimal(80) / epochs)
        first = (1 - gamma) / (1 - gamma**epochs)
        expected = [float(first * gamma ** (epochs - t)) for t in range(1, epochs + 1)]
    np.testing.assert_allclose(products(Exponential(gamma0), epochs), expected, rtol=1e-12)


@pytest.mark.parametrize("gamma0", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_gamma0_outside_the_open_unit_interval_is_rejected(gamma0):
    with pytest.raises(ValueError, match=rf"gamma0={gamma0} must lie strictly between 0 and 1"):
        Exponential(gamma0)
