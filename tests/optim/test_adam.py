"""torch's Adam and AMSGrad compared with reference implementations of their papers."""

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

HYPER = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-2}
REFERENCE_HYPER = {"betas": (0.9, 0.95), "epsilon": 1e-8, "decay": 1e-2}


def adam(amsgrad):
    return trajectory(torch.optim.Adam(parameters(), lr=1e-2, amsgrad=amsgrad, **HYPER))


def reference(make, **kwargs):
    return reference_trajectory(make(start(), 1e-2, **REFERENCE_HYPER, **kwargs))


@pytest.mark.parametrize(("amsgrad", "make"), [(False, Adam), (True, AMSGrad)])
def test_every_step_matches_the_reference(amsgrad, make):
    assert largest_error(adam(amsgrad), reference(make)) <= 1e-12


def test_amsgrad_maximum_matters_and_precedes_the_bias_correction():
    assert largest_error(adam(amsgrad=True), reference(Adam)) > 1e-2
    corrected_first = reference(AMSGrad, corrected_first=True)
    assert largest_error(adam(amsgrad=True), corrected_first) > 1e-2
