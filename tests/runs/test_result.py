"""Last, best and phase-end errors by hand-checked histories."""

import pytest

from phaseavg.runs.result import cost, errors, summary

HISTORY = [
    {"epoch": 1, "test_error": 30.0, "test_loss": 3.0, "train_loss": 2.0, "train_error": 20.0},
    {
        "epoch": 2,
        "phase": 1,
        "test_error": 25.0,
        "test_loss": 2.5,
        "bn_test_error": 24.0,
        "replaced": True,
        "average_test_error": 20.0,
        "average_test_loss": 2.0,
        "train_loss": 1.5,
        "train_error": 15.0,
    },
    # Drawn along the way, but not what training goes on from: neither best nor last.
    {
        "epoch": 3,
        "test_error": 22.0,
        "test_loss": 2.2,
        "average_test_error": 1.0,
        "average_test_loss": 0.1,
        "train_loss": 1.2,
        "train_error": 12.0,
    },
    {
        "epoch": 4,
        "phase": 2,
        "test_error": 19.0,
        "test_loss": 1.9,
        "bn_test_error": 19.5,
        "replaced": True,
        "average_test_error": 21.0,
        "average_test_loss": 2.1,
        "train_loss": 1.0,
        "train_error": 10.0,
    },
]


def test_the_reported_error_is_that_after_the_last_averaging() -> None:
    result = errors(HISTORY)
    assert (result["test_error"], result["test_loss"]) == (21.0, 2.1)
    assert (result["best_test_error"], result["best_epoch"]) == (20.0, 2)
    assert (result["train_loss"], result["train_error"]) == (1.0, 10.0)


def test_without_a_replacement_the_weights_as_they_are_count() -> None:
    plain = [{**line, "replaced": False} if "replaced" in line else line for line in HISTORY]
    result = errors(plain)
    assert result["test_error"] == 19.0
    assert (result["best_test_error"], result["best_epoch"]) == (19.0, 4)


def test_phase_ends_keep_all_three_errors() -> None:
    first, second = errors(HISTORY)["phases"]
    assert [first[key] for key in ("test_error", "bn_test_error", "average_test_error")] == [
        25.0,
        24.0,
        20.0,
    ]
    assert second["epoch"] == 4


def test_seconds_add_up_by_kind() -> None:
    history = [
        {"step": 5, "train_seconds": 2.0, "evaluation_seconds": 1.0, "images_per_second": 100.0},
        {"step": 10, "train_seconds": 4.0, "saving_seconds": 0.5, "images_per_second": 50.0},
    ]
    result = cost(history)
    assert (result["epochs"], result["steps"]) == (2, 10)
    assert result["train_seconds"] == 6.0
    assert result["evaluation_seconds"] == 1.0
    assert result["averaging_seconds"] == 0.0
    assert result["seconds"] == 7.5
    assert result["images_per_second"] == pytest.approx(400 / 6)
    assert cost([])["images_per_second"] is None


COST = {"epochs": 4, "seconds": 12.34, "images_per_second": 999.6}


def test_a_summary_states_last_and_best_error_and_what_the_batchnorm_pass_gives() -> None:
    assert summary({"status": "finished", **errors(HISTORY), **COST}) == (
        "test error 21.00 % (average; the weights before it 19.00 %, 19.50 % after "
        "a BatchNorm pass), best 20.00 % at epoch 2; 4 epochs in 12.3 s, 1000 images/s"
    )
    plain = [{**line, "replaced": False} if "replaced" in line else line for line in HISTORY]
    assert summary({"status": "finished", **errors(plain), **COST}) == (
        "test error 19.00 % (19.50 % after a BatchNorm pass), "
        "best 19.00 % at epoch 4; 4 epochs in 12.3 s, 1000 images/s"
    )
