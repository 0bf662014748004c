"""Derive the result of a run from its metrics."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Metrics = Mapping[str, Any]
History = Sequence[Metrics]

Evaluation = Mapping[str, Any] | None
"""Loss and error of one evaluation; None if the epoch was not evaluated."""


def _last_and_best(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the last and best evaluation, given one per epoch; empty if all are None."""
    evaluated = [(metrics, epoch) for epoch, metrics in enumerate(evaluations, 1) if metrics]
    if not evaluated:
        return {}
    last, _ = evaluated[-1]
    best_error, best_epoch = min((metrics["error"], epoch) for metrics, epoch in evaluated)
    return {
        "test_error": last["error"],
        "test_loss": last["loss"],
        "best_test_error": best_error,
        "best_epoch": best_epoch,
        "epochs_tested": len(evaluated),
    }


def summarise_errors(history: History, observers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last and best test loss and error, and the metrics of each phase end.

    If the average replaced the weights after an epoch, the epoch's error is the average's, after a
    BatchNorm pass. Otherwise it is the error of the optimizer's weights. The best error is over the
    evaluated epochs.

    Args:
        history: the metrics of each epoch.
        observers: the config of each observer, by name.
    """
    averages = [line["average"] if line.get("replaced") else None for line in history]

    def weights(key: str) -> list[Evaluation]:
        return [a or line.get(key) for a, line in zip(averages, history, strict=True)]

    def observer(name: str) -> dict[str, Any]:
        metrics = [line["observers"][name] for line in history]
        return {
            "averaging": observers[name],
            "with_bn_pass": _last_and_best([m if "error" in m else None for m in metrics]),
            "without_bn_pass": _last_and_best([m.get("without_bn") for m in metrics]),
        }

    raw = [
        a["without_bn"] if a else line.get("weights")
        for a, line in zip(averages, history, strict=True)
    ]
    return {
        **_last_and_best(weights("weights")),
        "train_loss": history[-1]["train"]["loss"],
        "train_error": history[-1]["train"]["error"],
        "with_bn_pass": _last_and_best(weights("bn")),
        "without_bn_pass": _last_and_best(raw),
        "observers": {name: observer(name) for name in observers},
        "phases": [line for line in history if "replaced" in line],  # their last epochs
    }


def cost(history: History) -> dict[str, Any]:
    """Return epochs, steps, seconds (in total and by kind) and images per second."""
    seconds: Counter[str] = Counter()
    for line in history:
        seconds.update(line["seconds"])
    trained = sum(line["images_per_second"] * line["seconds"]["train"] for line in history)
    return {
        "epochs": len(history),
        "steps": history[-1]["step"] if history else 0,
        "seconds": {"total": sum(seconds.values()), **seconds},
        "images_per_second": trained / seconds["train"] if history else None,
    }


def summary(result: Mapping[str, Any]) -> str:
    """Return a one-line summary of a result."""
    if result["status"] == "diverged":
        return f"diverged at step {result['step']} (epoch {result['epoch']}): {result['reason']}"
    end = result["phases"][-1]
    after_pass = f"{end['bn']['error']:.2f} % after a BatchNorm pass"
    if end["replaced"]:
        after_pass = f"average; weights before: {end['weights']['error']:.2f} %, {after_pass}"
    return (
        f"test error {result['test_error']:.2f} % ({after_pass}), best "
        f"{result['best_test_error']:.2f} % at epoch {result['best_epoch']}; {result['epochs']} "
        f"epochs in {result['seconds']['total']:.1f} s, {result['images_per_second']:.0f} images/s"
    )
