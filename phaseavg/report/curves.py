"""The metrics of runs as curves: what they are called, and the scripts that hold them.

A page that is opened from disk cannot fetch data; scripts it can load.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2.utils import htmlsafe_json_dumps

from phaseavg.runs.record import flattened

Series = dict[str, list[float | None]]
"""A value per epoch by metric; None where it was not measured."""

DIGITS = 5
"""Significant ones: more than a line on a screen can show."""

NO_METRICS = ("epoch", "phase", "step", "train.images", "test_images", "replaced")

GOING_ON = "going_on.error"
"""Not recorded but derived: where the average has replaced the weights, the average's error."""

KINDS = {  # of tests: what a metric of them is called
    "weights": "the optimizer's weights",
    "bn": "the weights after a BatchNorm pass",
    "average": "the average",
    "average.without_bn": "the average without a BatchNorm pass",
}

METRICS = {
    GOING_ON: "Test error (%) of the weights that training goes on from",
    **{f"{kind}.error": f"Test error (%) of {name}" for kind, name in KINDS.items()},
    "train.error": "Training error (%)",
    **{f"{kind}.loss": f"Test loss of {name}" for kind, name in KINDS.items()},
    "train.loss": "Training loss",
    "learning_rate": "Learning rate",
    "images_per_second": "Training images per second",
}


def label_of(metric: str) -> str:
    """Return what a metric is called: of those without a name of their own, its path in words."""
    return METRICS.get(metric, metric.replace(".", " "))


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
    lines = [flattened(line) for line in history]
    for line in lines:
        line[GOING_ON] = line.get("average.error" if line.get("replaced") else "weights.error")
    names = in_order(key for line in lines for key in line if key not in NO_METRICS)
    found = {name: [_rounded(line.get(name)) for line in lines] for name in names}
    return {n: values for n, values in found.items() if any(v is not None for v in values)}


def script(name: str, history: Sequence[Mapping[str, Any]]) -> str:
    """Return the script that hands the curves of a run to the page, under a name."""
    curves = {"epochs": [line["epoch"] for line in history], "metrics": series(history)}
    given = (htmlsafe_json_dumps(one, separators=(",", ":")) for one in (name, curves))
    return f"phaseavgCurves({','.join(given)});\n"
