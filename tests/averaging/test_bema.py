"""Bias-corrected exponential averages against a float64 reference in the authors' notation."""

import numpy as np
import pytest
import torch
from reference import flat, overwrite, random_trajectory, relative_error, small_network
from torch import nn

from phaseavg.averaging import BEMA, Phasewise


def reference(initial, thetas, kappa, eta, lag):
    """Return the estimates after each epoch: α_t (θ_t − θ_0) + EMA_t."""
    ema, estimates = initial.copy(), []
    for t, theta in enumerate(thetas, start=1):
        beta, alpha = 1 / (lag + t) ** kappa, 1 / (lag + t) ** eta
        ema = (1 - beta) * ema + beta * theta
        estimates.append(alpha * (theta - initial) + ema)
    return estimates


def follow(averager, model, thetas):
    """Return the average after each epoch, in a copy of the model with these weights."""
    averages = []
    for theta in thetas:
        overwrite(model, theta)
        averager.epoch_end(model, replace=False)
        averages.append(flat(averager.averaged(model)))
    return averages


@pytest.mark.parametrize(("kappa", "eta", "lag"), [(0.5, 0.2, 10.0), (0.8, 0.0, 0.0), (0, 3, 1)])
def test_the_average_matches_the_reference_in_each_phase(kappa, eta, lag):
    model = small_network()
    thetas, initial = random_trajectory(model, 7), flat(model)
    averager = Phasewise(model, [4, 3], BEMA(kappa, eta, lag))
    expected = reference(initial, thetas[:4], kappa, eta, lag)
    # Nothing replaced the weights, so phase 2 starts from the last weights.
    expected += reference(thetas[3], thetas[4:], kappa, eta, lag)
    for actual, wanted in zip(follow(averager, model, thetas), expected, strict=True):
        assert relative_error(actual, wanted) <= 1e-13


def test_coefficients_reproduce_the_average():
    model = small_network()
    thetas, initial = random_trajectory(model, 4), flat(model)
    averager = Phasewise(model, [4], BEMA(kappa=0.7, eta=0.4, lag=2.0))
    for t, theta in enumerate(thetas, start=1):
        (average,) = follow(averager, model, [theta])
        coefficients = np.array(averager.coefficients())
        combined = (1 - coefficients.sum()) * initial + coefficients @ thetas[:t]
        assert relative_error(combined, average) <= 1e-13


def test_half_precision_is_averaged_in_float32_and_integers_are_copied():
    model = nn.Linear(3, 2, dtype=torch.bfloat16)
    model.count = nn.Parameter(torch.tensor(3), requires_grad=False)
    averager = Phasewise(model, [2], BEMA())
    with torch.no_grad():
        model.count.fill_(5)
    averager.epoch_end(model)
    assert averager.averaged(model).count == 5
    assert averager.average.tensors[0].dtype == torch.float32


def test_other_settings_are_rejected_on_resume():
    state = Phasewise(small_network(), [2], BEMA()).state_dict()
    with pytest.raises(ValueError, match=r"weights=BEMA\(.*eta=0.1.*saved with .*eta=0.2"):
        Phasewise(small_network(), [2], BEMA(eta=0.1)).load_state_dict(state)
