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
        "bn_test_loss": 2.4,
        "replaced": True,
        "average_without_bn_test_error": 60.0,
        "average_without_bn_test_loss": 6.0,
        "swa_without_bn_test_error": 70.0,
        "swa_without_bn_test_loss": 7.0,
        "swa_test_error": 18.0,
        "swa_test_loss": 1.8,
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
        "bn_test_loss": 1.95,
        "replaced": True,
        "average_without_bn_test_error": 20.5,
        "average_without_bn_test_loss": 2.05,
        "swa_without_bn_test_error": 71.0,
        "swa_without_bn_test_loss": 7.1,
        "swa_test_error": 18.5,
        "swa_test_loss": 1.85,
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


def entry(error: float, best: float, epoch: int, tested: int) -> dict[str, float]:
    return {
        "test_error": error,
        "test_loss": pytest.approx(error / 10),
        "best_test_error": best,
        "best_epoch": epoch,
        "epochs_tested": tested,
    }


def test_errors_with_and_without_a_batchnorm_pass_are_told_apart() -> None:
    averaged = errors(HISTORY)
    assert averaged["with_bn_pass"] == entry(21.0, 20.0, 2, 2)
    # Epochs 1 and 3 with the weights as they are, 2 and 4 with the average as it was taken over.
    assert averaged["without_bn_pass"] == entry(20.5, 20.5, 4, 4)
    plain = errors(
        [{**line, "replaced": False} if "replaced" in line else line for line in HISTORY]
    )
    assert plain["with_bn_pass"] == entry(19.5, 19.5, 4, 2)
    assert plain["without_bn_pass"] == entry(19.0, 19.0, 4, 4)


def test_what_was_watched_has_its_own_errors() -> None:
    assert errors(HISTORY)["watched"] == {}
    watched = errors(HISTORY, ["swa"])["watched"]
    assert watched["swa"]["with_bn_pass"] == entry(18.5, 18.0, 2, 2)
    assert watched["swa"]["without_bn_pass"] == entry(71.0, 70.0, 2, 2)


def test_records_of_before_have_no_error_without_a_pass_where_the_average_took_over() -> None:
    earlier = [
        {key: value for key, value in line.items() if "without_bn" not in key} for line in HISTORY
    ]
    assert errors(earlier)["without_bn_pass"] == entry(22.0, 22.0, 3, 2)


def test_of_equal_errors_the_first_is_the_best_whatever_the_loss() -> None:
    line = {"train_loss": 1.0, "train_error": 1.0, "test_error": 5.0}
    history = [{**line, "epoch": 1, "test_loss": None}, {**line, "epoch": 2, "test_loss": 0.1}]
    history.insert(0, {**line, "epoch": 1, "test_loss": 0.2})
    assert errors(history)["best_epoch"] == 1


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
