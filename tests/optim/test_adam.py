"""torch's Adam and AMSGrad, which the comparisons use, against their papers at every step."""

import math

import pytest
import torch
from optimizer_reference import (
    Adam,
    AMSGrad,
    largest_error,
    parameters,
    reference_trajectory,
    start,
    trajectory,
)
from torch import nn

HYPER = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-2}
REFERENCE_HYPER = {"betas": (0.9, 0.95), "epsilon": 1e-8, "decay": 1e-2}


def adam(amsgrad):
    return trajectory(torch.optim.Adam(parameters(), lr=1e-2, amsgrad=amsgrad, **HYPER))


def reference(make, **kwargs):
    return reference_trajectory(make(start(), 1e-2, **REFERENCE_HYPER, **kwargs))


@pytest.mark.parametrize(("amsgrad", "make"), [(False, Adam), (True, AMSGrad)])
def test_every_step_is_that_of_the_reference(amsgrad, make):
    assert largest_error(adam(amsgrad), reference(make)) <= 1e-12


def test_the_maximum_is_not_a_trifle_and_is_taken_before_the_bias_correction():
    assert largest_error(adam(amsgrad=True), reference(Adam)) > 1e-2
    corrected_first = reference(AMSGrad, corrected_first=True)
    assert largest_error(adam(amsgrad=True), corrected_first) > 1e-2


@pytest.mark.parametrize("amsgrad", [False, True])
def test_two_steps_by_hand(amsgrad):
    theta = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.Adam([theta], lr=1.0, betas=(0.5, 0.75), eps=0.0, amsgrad=amsgrad)
    theta.grad = torch.tensor(4.0).double()
    optimizer.step()  # m = 2 and v = 4; corrected 4 and 16
    assert theta.item() == pytest.approx(-1, rel=1e-15)
    theta.grad = torch.tensor(0.0).double()
    optimizer.step()  # m = 1, corrected 4/3; v = 3, or 4 as the largest, over 1 - 0.75² = 7/16
    corrected_v = (4 if amsgrad else 3) * 16 / 7
    assert theta.item() == pytest.approx(-1 - 4 / 3 / math.sqrt(corrected_v), rel=1e-15)
