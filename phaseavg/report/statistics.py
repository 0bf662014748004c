"""Statistics of runs with several seeds: pairs, intervals, verdicts, and how they are written.

Two runs make a pair if they have the same seed and the same execution. Every table, claim and
figure takes its pairs, intervals and verdicts from this module.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

SAME = ["seed", "execution"]
"""What the runs of a pair have in common: on another device or precision a seed ends elsewhere."""

CONFIDENCE = 0.95
LEVEL = (1 - CONFIDENCE) / 2
"""Of one-sided tests, so that they agree with the bounds of a two-sided interval."""


def pairs(left: pd.Series, right: pd.Series) -> pd.DataFrame:
    """Return the pairs of two sets of runs, a row each: columns left and right.

    Both are indexed by `SAME`, and by any other levels that make a pair.
    """
    columns = left.astype(float).to_frame("left"), right.astype(float).to_frame("right")
    return columns[0].join(columns[1], how="inner", validate="one_to_one").dropna()


def differences(left: pd.Series, right: pd.Series) -> pd.Series:
    """Return left − right of the pairs; see `pairs`."""
    both = pairs(left, right)
    return both["left"] - both["right"]


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the t interval of a mean; all numbers if there are fewer than two values."""
    if len(values) < 2:
        return -np.inf, np.inf
    mean = float(np.mean(values))
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return mean - float(half), mean + float(half)


def p_above(values: Sequence[float], margin: float) -> float:
    """Return the one-sided p-value of a t test whose alternative is a mean above the margin."""
    if len(values) < 2:
        return 1.0
    distance, error = float(np.mean(values)) - margin, float(stats.sem(values))
    if error == 0:
        return float(not distance > 0)
    return float(stats.t.sf(distance / error, len(values) - 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted by Holm's step-down method, in their order."""
    p = np.asarray(p_values, float)
    order = p.argsort(kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def verdict(values: Sequence[float], margin: float) -> str:
    """Return `holds`, `does not hold` or `open`: where the interval lies, of one value per seed."""
    return judged([[values]], margin)[0]


def confidence_of(alternatives: int) -> float:
    """Return the confidence of each alternative's intervals (Bonferroni); see `judged`."""
    return 1 - (1 - CONFIDENCE) / alternatives


def judged(
    alternatives: Sequence[Sequence[Sequence[float]]], margin: float
) -> tuple[str, list[list[str]]]:
    """Return the verdict on a claim, and those on its parts.

    A part holds if its interval lies below the margin; with several alternatives, the interval of
    `confidence_of` them. It does not hold if it is above the margin after Holm's correction over
    the alternative's parts of two seeds or more. An alternative holds if every part holds, and does
    not hold if one does not. A claim holds if one alternative holds, and does not hold if none
    does. All else is open, such as a part with fewer than two seeds.

    Args:
        alternatives: of each its parts, of each part one value per seed.
        margin: what the values have to be below.
    """
    confidence = confidence_of(len(alternatives))
    words = []
    for parts in alternatives:
        tested = [n for n, values in enumerate(parts) if len(values) > 1]
        adjusted = dict(zip(tested, holm([p_above(parts[n], margin) for n in tested]), strict=True))
        words.append(
            [
                "does not hold"
                if adjusted.get(n, 1.0) < LEVEL
                else "holds"
                if interval(values, confidence)[1] < margin
                else "open"
                for n, values in enumerate(parts)
            ]
        )
    whole = [_weakest(parts) for parts in words]
    if "holds" in whole:
        return "holds", words
    return ("does not hold" if set(whole) == {"does not hold"} else "open"), words


def _weakest(parts: Sequence[str]) -> str:
    if "does not hold" in parts:
        return "does not hold"
    return "holds" if set(parts) == {"holds"} else "open"


def spread(mean: float, deviation: float) -> str:
    """Return mean ± deviation, where there is one; nothing of a blank."""
    if pd.isna(mean):
        return ""
    return f"{mean:.2f}" + ("" if pd.isna(deviation) else f" ± {deviation:.2f}")


def signed(value: float, digits: int = 2) -> str:
    """Return a difference with its sign; nothing of a blank."""
    return "" if pd.isna(value) else f"{value:+.{digits}f}".replace("-", "−")


def with_interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    """Return a difference with its interval, where there is one; nothing of a blank."""
    if pd.isna(mean) or not np.isfinite(low):
        return signed(mean, digits)
    return f"{signed(mean, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def mean_with_interval(values: Sequence[float]) -> str:
    """Return the mean of differences with its interval, from two values on; of none nothing."""
    return with_interval(np.mean(values), *interval(values)) if len(values) else ""
