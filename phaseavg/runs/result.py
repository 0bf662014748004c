"""The outcome of a run in numbers, derived from its history."""

from collections.abc import Mapping, Sequence
from typing import Any

History = Sequence[Mapping[str, Any]]

KINDS_OF_SECONDS = ("train", "averaging", "evaluation", "saving")


def errors(history: History) -> dict[str, Any]:
    """Return the last and the best test loss and error, and those at the end of each phase.

    An epoch counts with the weights that training went on from: where the average has replaced the
    weights, with the average after its BatchNorm pass; else with the weights as the optimizer left
    them. `best` is over the epochs that were tested.
    """
    tested = []
    for line in history:
        prefix = "average_" if line.get("replaced") else ""
        if f"{prefix}test_error" in line:
            tested.append((line[f"{prefix}test_error"], line["epoch"], line[f"{prefix}test_loss"]))
    best_error, best_epoch, _ = min(tested)
    last_error, _, last_loss = tested[-1]
    kept = ("phase", "epoch", "learning_rate", "train_loss", "train_error", "replaced")
    return {
        "test_error": last_error,
        "test_loss": last_loss,
        "best_test_error": best_error,
        "best_epoch": best_epoch,
        "train_loss": history[-1]["train_loss"],
        "train_error": history[-1]["train_error"],
        "phases": [
            {key: value for key, value in line.items() if key in kept or "test_" in key}
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
    passed = f"{end['bn_test_error']:.2f} % after a BatchNorm pass"
    if end["replaced"]:
        passed = f"average; the weights before it {end['test_error']:.2f} %, {passed}"
    return (
        f"test error {result['test_error']:.2f} % ({passed}), best "
        f"{result['best_test_error']:.2f} % at epoch {result['best_epoch']}; {result['epochs']} "
        f"epochs in {result['seconds']:.1f} s, {result['images_per_second']:.0f} images/s"
    )
