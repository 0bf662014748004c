"""The metrics of runs as curves: what they are called, and the scripts that hold them.

A page that is opened from disk cannot fetch data; scripts it can load.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2.utils import htmlsafe_json_dumps

Series = dict[str, list[float | None]]
"""A value per epoch by metric; None where it was not measured."""

DIGITS = 5
"""Significant ones: more than a line on a screen can show."""

NO_METRICS = ("epoch", "phase", "step", "train_images", "test_images", "replaced")
CARRIED = "carried"
"""What the names of averages begin with that a shared trajectory carries for other runs."""

GOING_ON = "going_on_test_error"
"""Not recorded but derived: where the average has replaced the weights, the average's error."""

METRICS = {
    GOING_ON: "Test error (%) of the weights that training goes on from",
    "test_error": "Test error (%) of the optimizer's weights",
    "bn_test_error": "Test error (%) after a BatchNorm pass",
    "average_test_error": "Test error (%) of the average",
    "average_without_bn_test_error": "Test error (%) of the average without a BatchNorm pass",
    "train_error": "Training error (%)",
    "test_loss": "Test loss of the optimizer's weights",
    "bn_test_loss": "Test loss after a BatchNorm pass",
    "average_test_loss": "Test loss of the average",
    "average_without_bn_test_loss": "Test loss of the average without a BatchNorm pass",
    "train_loss": "Training loss",
    "learning_rate": "Learning rate",
    "images_per_second": "Training images per second",
    "train_seconds": "Seconds of training",
    "averaging_seconds": "Seconds of averaging",
    "evaluation_seconds": "Seconds of testing",
    "watching_seconds": "Seconds of watching",
    "saving_seconds": "Seconds of saving",
}

ENDINGS = {  # of averages that are watched, each under a name of its own
    "_without_bn_test_error": "Test error (%) of {} without a BatchNorm pass",
    "_without_bn_test_loss": "Test loss of {} without a BatchNorm pass",
    "_test_error": "Test error (%) of {}",
    "_test_loss": "Test loss of {}",
}


def label_of(metric: str) -> str:
    """Return what a metric is called."""
    if metric in METRICS:
        return METRICS[metric]
    for ending, text in ENDINGS.items():
        if metric.endswith(ending):
            return text.format(metric.removesuffix(ending))
    return metric.replace("_", " ").capitalize()


def in_order(metrics: Iterable[str]) -> list[str]:
    """Return metrics with the known ones first, each once."""
    names = set(metrics)
    return [name for name in METRICS if name in names] + sorted(names - METRICS.keys())


def _rounded(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def series(history: Sequence[Mapping[str, Any]]) -> Series:
    """Return the curves in lines of metrics, and the one that is derived from them."""
    names = in_order(key for line in history for key in line)
    found = {
        name: [_rounded(line.get(name)) for line in history]
        for name in names
        if name not in NO_METRICS and not name.startswith(CARRIED)
    }
    going_on = [
        _rounded(line.get("average_test_error" if line.get("replaced") else "test_error"))
        for line in history
    ]
    found = {GOING_ON: going_on, **found}
    return {n: values for n, values in found.items() if any(v is not None for v in values)}


def script(name: str, history: Sequence[Mapping[str, Any]]) -> str:
    """Return the script that hands the curves of a run to the page, under a name."""
    curves = {"epochs": [line["epoch"] for line in history], "metrics": series(history)}
    given = (htmlsafe_json_dumps(one, separators=(",", ":")) for one in (name, curves))
    return f"phaseavgCurves({','.join(given)});\n"
