"""Last, best and phase-end errors, compared with results computed by hand."""

from typing import Any

import pytest

from phaseavg.runs.result import cost, summarise_errors


def scores(error: float) -> dict[str, float]:
    return {"loss": error / 10, "error": error}


HISTORY: list[dict[str, Any]] = [
    {
        "epoch": 1,
        "train": scores(30.0),
        "weights": scores(30.0),
        "observers": {"swa": {}},
    },
    {
        "epoch": 2,
        "phase": 1,
        "train": scores(15.0),
        "weights": scores(25.0),
        "bn": scores(24.0),
        "average": {"without_bn": scores(60.0), **scores(20.0)},
        "observers": {"swa": {"without_bn": scores(70.0), **scores(18.0)}},
        "replaced": True,
    },
    # The average is evaluated in mid-phase, but does not replace the weights.
    {
        "epoch": 3,
        "train": scores(12.0),
        "weights": scores(22.0),
        "average": scores(1.0),
        "observers": {"swa": {}},
    },
    {
        "epoch": 4,
        "phase": 2,
        "train": scores(10.0),
        "weights": scores(19.0),
        "bn": scores(19.5),
        "average": {"without_bn": scores(20.5), **scores(21.0)},
        "observers": {"swa": {"without_bn": scores(71.0), **scores(18.5)}},
        "replaced": True,
    },
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
    assert averaged["without_bn_pass"] == part(20.5, 20.5, 4, 4)
    assert (averaged["train_loss"], averaged["train_error"]) == (1.0, 10.0)
    assert averaged["phases"] == [HISTORY[1], HISTORY[3]]
    plain = summarise_errors(NOT_REPLACED, {})
    assert plain.items() >= part(19.0, 19.0, 4, 4).items()
    assert plain["with_bn_pass"] == part(19.5, 19.5, 4, 2)
    assert plain["without_bn_pass"] == part(19.0, 19.0, 4, 4)


def test_observers_have_their_own_errors() -> None:
    assert summarise_errors(HISTORY, {})["observers"] == {}
    assert summarise_errors(HISTORY, {"swa": SWA})["observers"] == {
        "swa": {
            "averaging": SWA,
            "with_bn_pass": part(18.5, 18.0, 2, 2),
            "without_bn_pass": part(71.0, 70.0, 2, 2),
        }
    }


def test_the_first_of_equal_errors_is_the_best() -> None:
    losses = [0.2, None, 0.1]
    history = [
        {"epoch": epoch, "train": scores(1.0), "weights": {"loss": loss, "error": 5.0}}
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
