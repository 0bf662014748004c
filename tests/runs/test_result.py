"""Last, best and phase-end errors, compared with results computed by hand."""

from typing import Any

import pytest
from made_records import metrics_line

from phaseavg.runs.result import cost, summarise_errors, summary


def observed(error: float) -> dict[str, Any]:
    """Return the metrics of the observer `swa` at a phase end."""
    return {"swa": metrics_line(1, average=error)["average"]}


NONE: dict[str, Any] = {"swa": {}}
HISTORY = [
    metrics_line(1, 30.0, observers=NONE),
    metrics_line(2, 25.0, 24.0, 20.0, observers=observed(18.0), replaced=True),
    # The average is evaluated in mid-phase, but does not replace the weights.
    metrics_line(3, 22.0, average=1.0, observers=NONE),
    metrics_line(4, 19.0, 19.5, 21.0, observers=observed(18.5), replaced=True),
]
NOT_REPLACED = [{**line, "replaced": False} if "replaced" in line else line for line in HISTORY]
SWA = {"_target_": "phaseavg.averaging.Phasewise"}


def part(error: float, best: float, epoch: int, epochs: int) -> dict[str, float]:
    """Return the result of one kind of evaluation: last and best error, best epoch, count."""
    return {
        "test_error": error,
        "test_loss": pytest.approx(error / 10),
        "best_test_error": best,
        "best_epoch": epoch,
        "epochs_tested": epochs,
    }


def test_errors_are_those_of_the_weights_after_replacement() -> None:
    averaged = summarise_errors(HISTORY, {})
    # Epochs 1 and 3 count with the weights, 2 and 4 with the average that replaced them.
    assert averaged.items() >= part(21.0, 20.0, 2, 4).items()
    assert averaged["with_bn_pass"] == part(21.0, 20.0, 2, 2)
    assert averaged["without_bn_pass"] == part(90.0, 22.0, 3, 4)
    assert (averaged["train_loss"], averaged["train_error"]) == (0.25, 50.0)
    assert averaged["phases"] == [HISTORY[1], HISTORY[3]]
    plain = summarise_errors(NOT_REPLACED, {})
    assert plain.items() >= part(19.0, 19.0, 4, 4).items()
    assert plain["with_bn_pass"] == part(19.5, 19.5, 4, 2)
    assert plain["without_bn_pass"] == part(19.0, 19.0, 4, 4)


def test_the_last_line_of_a_run_shows_its_errors_and_its_cost() -> None:
    result = {"status": "finished", **summarise_errors(HISTORY, {}), **cost(HISTORY)}
    assert summary(result) == (
        "test error 21.00 % (average; weights before: 19.00 %, 19.50 % after a BatchNorm pass), "
        "best 20.00 % at epoch 2; 4 epochs in 12.0 s, 10 images/s"
    )


def test_observers_have_their_own_errors() -> None:
    assert summarise_errors(HISTORY, {})["observers"] == {}
    assert summarise_errors(HISTORY, {"swa": SWA})["observers"] == {
        "swa": {
            "averaging": SWA,
            "with_bn_pass": part(18.5, 18.0, 2, 2),
            "without_bn_pass": part(90.0, 90.0, 2, 2),
        }
    }


def test_the_first_of_equal_errors_is_the_best() -> None:
    losses = [0.2, None, 0.1]
    history = [
        metrics_line(epoch) | {"weights": {"loss": loss, "error": 5.0}}
        for epoch, loss in enumerate(losses, 1)
    ]
    assert summarise_errors(history, {})["best_epoch"] == 1


def test_seconds_add_up_by_kind() -> None:
    history = [
        {"step": 5, "seconds": {"train": 2.0, "evaluation": 1.0}, "images_per_second": 100.0},
        {"step": 10, "seconds": {"train": 4.0, "saving": 0.5}, "images_per_second": 50.0},
    ]
    result = cost(history)
    assert (result["epochs"], result["steps"]) == (2, 10)
    assert result["seconds"] == {"total": 7.5, "train": 6.0, "evaluation": 1.0, "saving": 0.5}
    assert result["images_per_second"] == pytest.approx(400 / 6)
    assert cost([])["images_per_second"] is None
