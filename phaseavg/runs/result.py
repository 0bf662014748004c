"""The outcome of a run in numbers, derived from its history."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

History = Sequence[Mapping[str, Any]]

KINDS_OF_SECONDS = ("train", "averaging", "evaluation", "watching", "saving")
"""Of these, `train` and `averaging` are what the method costs."""

TESTED = ("test_error", "test_loss", "test_images")


def last_and_best(
    history: History, prefix: str, replaced_prefix: str | None = None
) -> dict[str, Any]:
    """Return the last and the best of the test errors under one name.

    Args:
        history: lines of metrics.
        prefix: what the name has before `test_error`.
        replaced_prefix: the same where the average has replaced the weights; by default as ever.

    Returns:
        `test_error` and `test_loss`, the last; `best_test_error` and `best_epoch`; `epochs_tested`.
        Nothing if no epoch was tested.
    """
    tested = []
    for line in history:
        replaced = line.get("replaced") and replaced_prefix is not None
        name = replaced_prefix if replaced else prefix
        if f"{name}test_error" in line:
            tested.append((line[f"{name}test_error"], line["epoch"], line[f"{name}test_loss"]))
    if not tested:
        return {}
    best_error, best_epoch, _ = min(tested, key=lambda entry: entry[:2])
    last_error, _, last_loss = tested[-1]
    return {
        "test_error": last_error,
        "test_loss": last_loss,
        "best_test_error": best_error,
        "best_epoch": best_epoch,
        "epochs_tested": len(tested),
    }


def errors(history: History, watched: Iterable[str] = ()) -> dict[str, Any]:
    """Return the last and the best test loss and error, and those at the end of each phase.

    An epoch counts with the weights that training went on from: where the average has replaced the
    weights, with the average after its BatchNorm pass; else with the weights as the optimizer left
    them. `best` is over the epochs that were tested.

    `with_bn_pass` and `without_bn_pass` have the errors of these weights after a BatchNorm pass and
    without one, over the epochs in which they were tested so: by default the ends of phases and
    all. `watched` has both for each average that was watched.

    Args:
        history: lines of metrics.
        watched: names of these averages.
    """
    kept = ("phase", "epoch", "learning_rate", "train_loss", "train_error", "replaced")
    return {
        **last_and_best(history, "", "average_"),
        "train_loss": history[-1]["train_loss"],
        "train_error": history[-1]["train_error"],
        "with_bn_pass": last_and_best(history, "bn_", "average_"),
        "without_bn_pass": last_and_best(history, "", "average_without_bn_"),
        "watched": {
            name: {
                "with_bn_pass": last_and_best(history, f"{name}_"),
                "without_bn_pass": last_and_best(history, f"{name}_without_bn_"),
            }
            for name in watched
        },
        "phases": [
            {key: value for key, value in line.items() if key in kept or key.endswith(TESTED)}
            for line in history
            if "replaced" in line
        ],
    }


def cost(history: History) -> dict[str, Any]:
    """Return what the run took: epochs, steps, seconds by kind and in all, images per second."""
    seconds = {
        f"{kind}_seconds": sum(line.get(f"{kind}_seconds", 0.0) for line in history)
        for kind in KINDS_OF_SECONDS
    }
    trained = sum(line["images_per_second"] * line["train_seconds"] for line in history)
    return {
        "epochs": len(history),
        "steps": history[-1]["step"] if history else 0,
        "seconds": sum(seconds.values()),
        **seconds,
        "images_per_second": trained / seconds["train_seconds"] if history else None,
    }


def summary(result: Mapping[str, Any]) -> str:
    """Return a result in one line."""
    if result["status"] == "diverged":
        return f"diverged at step {result['step']} (epoch {result['epoch']}): {result['reason']}"
    end = result["phases"][-1]
    inherited = result.get("inherited", {"epochs": 0})  # which older records have not got
    shared = (
        f"; of these {inherited['epochs']} epochs, {inherited['seconds']:.1f} s, shared with others"
        if inherited["epochs"]
        else ""
    )
    passed = f"{end['bn_test_error']:.2f} % after a BatchNorm pass"
    if end["replaced"]:
        passed = f"average; the weights before it {end['test_error']:.2f} %, {passed}"
    return (
        f"test error {result['test_error']:.2f} % ({passed}), best "
        f"{result['best_test_error']:.2f} % at epoch {result['best_epoch']}; {result['epochs']} "
        f"epochs in {result['seconds']:.1f} s, {result['images_per_second']:.0f} images/s{shared}"
    )
