"""Compute and format statistics over seeds: pairs, intervals and verdicts.

Two runs form a pair if they have the same seed and the same execution. Every table, claim and
figure uses this module for pairs, intervals and verdicts.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

PAIR_KEYS = ["seed", "execution"]
"""The keys of a pair: on another device or precision, the same seed gives other weights."""

CONFIDENCE = 0.95
LEVEL = (1 - CONFIDENCE) / 2
"""The level of one-sided tests, which agrees with the bounds of a two-sided interval."""


def differences(left: pd.Series, right: pd.Series) -> pd.Series:
    """Return left − right for each pair of runs.

    Both indexes have the levels `PAIR_KEYS`; further levels have to match, too.
    """
    columns = left.astype(float).to_frame("left"), right.astype(float).to_frame("right")
    pairs = columns[0].join(columns[1], how="inner", validate="one_to_one").dropna()
    return pairs["left"] - pairs["right"]


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the t interval of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return np.nan, np.nan
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
    """Return p-values adjusted by Holm's step-down method, in the original order."""
    p = np.asarray(p_values, float)
    order = p.argsort(kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def verdict(values: Sequence[float], margin: float) -> str:
    """Return `holds`, `does not hold` or `open` for one value per seed; see `judge_parts`."""
    return judge_parts([[values]], margin)[0]


def adjusted_confidence(alternatives: int) -> float:
    """Return the confidence level of each alternative (Bonferroni); see `judge_parts`."""
    return 1 - (1 - CONFIDENCE) / alternatives


def judge_parts(
    alternatives: Sequence[Sequence[Sequence[float]]], margin: float
) -> tuple[str, list[list[str]]]:
    """Return the verdict on a claim, and the verdicts on the parts of each alternative.

    A part holds if its interval lies below the margin; several alternatives use intervals of
    `adjusted_confidence`. A part does not hold if its mean is significantly above the margin, after
    Holm's correction over the alternative's parts with two seeds or more. An alternative holds if
    every part holds; it does not hold if one part does not. A claim holds if one alternative holds;
    it does not hold if no alternative does. Every other verdict is open.

    Args:
        alternatives: the parts of each alternative, as one value per seed.
        margin: the upper limit of the values.
    """
    confidence = adjusted_confidence(len(alternatives))
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
    verdicts = [_weakest(parts) for parts in words]
    if "holds" in verdicts:
        return "holds", words
    return ("does not hold" if set(verdicts) == {"does not hold"} else "open"), words


def _weakest(parts: Sequence[str]) -> str:
    if "does not hold" in parts:
        return "does not hold"
    return "holds" if set(parts) == {"holds"} else "open"


def spread(mean: float, deviation: float) -> str:
    """Format mean ± standard deviation; each is left out if it is NaN."""
    if pd.isna(mean):
        return ""
    return f"{mean:.2f}" + ("" if pd.isna(deviation) else f" ± {deviation:.2f}")


def signed(value: float, digits: int = 2) -> str:
    """Format a difference with its sign; empty for NaN."""
    return "" if pd.isna(value) else f"{value:+.{digits}f}".replace("-", "−")


def with_interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    """Format a difference with its interval; each is left out if it is NaN."""
    if pd.isna(mean) or pd.isna(low):
        return signed(mean, digits)
    return "{} [{}, {}]".format(*(signed(value, digits) for value in (mean, low, high)))


def mean_with_interval(values: Sequence[float]) -> str:
    """Format the mean of differences, with its interval for two or more; empty for none."""
    return with_interval(np.mean(values), *interval(values)) if len(values) else ""
