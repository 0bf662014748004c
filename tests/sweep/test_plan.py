"""The disk that a plan says its prefixes take."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TINY

from phaseavg.sweep.cells import Run
from phaseavg.sweep.order import arranged
from phaseavg.sweep.plan import moments, parameters_of, prefix_bytes

INNER = {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [
        (INNER, 1),
        ({**INNER, "momentum": 0.0}, 0),
        ({"_target_": "torch.optim.Adam"}, 2),
        ({"_target_": "torch.optim.Adam", "amsgrad": True}, 3),
        ({"_target_": "phaseavg.optim.Lookahead", "inner": INNER}, 2),
    ],
)
def test_an_optimizers_state_is_counted(optimizer: dict[str, Any], numbers: int) -> None:
    assert moments(json.dumps(optimizer)) == numbers


def test_the_bytes_of_prefixes_by_hand(compose_settings: Callable[..., Any]) -> None:
    """SGD keeps the states after 2 and 5 epochs, one with an average, and a file an epoch."""
    methods = ("none", "phasewise", "end", "rna")
    runs = [Run([], compose_settings(*TINY, f"averaging={method}")) for method in methods]
    sgd, *others = arranged(runs)
    assert sgd.keep == {2, 5}
    weights_and_momentum, averages = 2 * 2, 2 + 1  # of phasewise and end after 2, of end after 5
    vectors = weights_and_momentum + averages + 2  # and two epochs of RNA
    parameters = parameters_of(json.dumps(sgd.run.settings.model), 32)
    assert prefix_bytes(sgd) == 4 * parameters * vectors
    assert [prefix_bytes(job) for job in others] == [0, 0, 0]
