"""The examples run unchanged and show the claimed results."""

import runpy
from typing import Any

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _examples_import_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))


def result_of(name: str) -> Any:
    """Run an example's `main` and return its result."""
    return runpy.run_path(str(REPOSITORY / "examples" / name))["main"]()


def test_in_a_plain_loop_the_average_beats_sgd_after_the_first_phase() -> None:
    (sgd, average), *others = result_of("plain_torch.py")
    assert average < sgd - 1  # 3 to 7 points with other seeds
    assert len(others) == 2


def test_a_language_model_learns_and_its_average_is_no_worse_at_the_constant_rate() -> None:
    losses = result_of("language_model.py")
    assert len(losses) == 3
    weights, average = losses[0]
    assert average < weights < 3  # log of the alphabet is 4.2


@pytest.mark.filterwarnings("ignore")  # warnings of Lightning itself
def test_in_lightning_the_average_replaces_the_weights_at_phase_ends() -> None:
    pytest.importorskip("lightning")
    errors = result_of("in_lightning.py")
    assert len(errors) == 40
    assert errors[19] < errors[18] - 1


@pytest.mark.filterwarnings("ignore")
def test_in_transformers_the_loss_falls_at_the_end_of_the_first_phase() -> None:
    pytest.importorskip("transformers")
    losses = result_of("in_transformers.py")
    assert len(losses) == 15
    assert losses[9] < losses[8]
    assert losses[-1] < 1
