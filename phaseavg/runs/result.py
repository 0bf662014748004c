"""The outcome of a run, derived from its metrics."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Metrics = Mapping[str, Any]
History = Sequence[Metrics]

Tested = Mapping[str, Any] | None
"""Loss and error of one test; None where there was none."""


def _last_and_best(tests: Sequence[Tested]) -> dict[str, Any]:
    """Return the last and the best of the tests of each epoch; nothing if there is none."""
    tested = [(test, epoch) for epoch, test in enumerate(tests, 1) if test]
    if not tested:
        return {}
    last, _ = tested[-1]
    best_error, best_epoch = min((test["error"], epoch) for test, epoch in tested)
    return {
        "test_error": last["error"],
        "test_loss": last["loss"],
        "best_test_error": best_error,
        "best_epoch": best_epoch,
        "epochs_tested": len(tested),
    }


def errors(history: History, observers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last and the best test loss and error, and the metrics of each phase end.

    An epoch counts with the weights that training went on from: where the average has replaced the
    weights, the average after its BatchNorm pass; elsewhere the weights as the optimizer left them.
    The best is over the epochs that were tested.

    Args:
        history: the metrics of each epoch.
        observers: the config of each observer, by name.
    """
    averages = [line["average"] if line.get("replaced") else None for line in history]

    def weights(key: str) -> list[Tested]:
        return [a or line.get(key) for a, line in zip(averages, history, strict=True)]

    def observer(name: str) -> dict[str, Any]:
        tests = [line["observers"][name] for line in history]
        return {
            "averaging": observers[name],
            "with_bn_pass": _last_and_best([test if "error" in test else None for test in tests]),
            "without_bn_pass": _last_and_best([test.get("without_bn") for test in tests]),
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
        "phases": phase_ends(history),
    }


def phase_ends(history: Iterable[Metrics]) -> list[Metrics]:
    """Return the metrics of the epochs that end a phase."""
    return [line for line in history if "replaced" in line]


def cost(history: History) -> dict[str, Any]:
    """Return what the run took: epochs, steps, seconds by kind and in total, images per second."""
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
    """Return a result in one line."""
    if result["status"] == "diverged":
        return f"diverged at step {result['step']} (epoch {result['epoch']}): {result['reason']}"
    end = result["phases"][-1]
    after_pass = f"{end['bn']['error']:.2f} % after a BatchNorm pass"
    if end["replaced"]:
        after_pass = f"average; the weights before it {end['weights']['error']:.2f} %, {after_pass}"
    return (
        f"test error {result['test_error']:.2f} % ({after_pass}), best "
        f"{result['best_test_error']:.2f} % at epoch {result['best_epoch']}; {result['epochs']} "
        f"epochs in {result['seconds']['total']:.1f} s, {result['images_per_second']:.0f} images/s"
    )
