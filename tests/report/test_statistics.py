"""Pairs, intervals, Holm's correction and verdicts, compared with scipy and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from phaseavg.report.statistics import (
    PAIR_KEYS,
    differences,
    holm,
    interval,
    judge_parts,
    mean_with_interval,
    p_above,
    signed,
    spread,
    verdict,
    with_interval,
)


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("confidence", [0.95, 0.975])
def test_the_interval_matches_scipy(n: int, confidence: float) -> None:
    left, right = np.random.default_rng(n).normal(25, 1, size=(2, n))
    expected = stats.ttest_rel(left, right).confidence_interval(confidence)
    assert interval(left - right, confidence) == pytest.approx(tuple(expected), rel=1e-12)
    one_sided = stats.ttest_1samp(left - right, 0.2, alternative="greater").pvalue
    assert p_above(left - right, 0.2) == pytest.approx(one_sided, rel=1e-12)


def test_holms_correction_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; made monotone.
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)
    assert holm([0.5, 0.6]) == pytest.approx([1, 1])
    assert holm([]).size == 0


def test_pairs_share_seed_and_execution() -> None:
    def errors(*entries: tuple[int, str, float]) -> pd.Series:
        return pd.DataFrame(entries, columns=[*PAIR_KEYS, "error"]).set_index(PAIR_KEYS)["error"]

    left = errors((0, "gpu", 20.0), (1, "gpu", 21.0), (2, "gpu", 22.0), (3, "gpu", np.nan))
    right = errors((2, "gpu", 25.0), (0, "gpu", 22.0), (1, "cpu", 30.0), (3, "gpu", 1.0))
    found = differences(left, right)
    assert found.to_dict() == {(0, "gpu"): -2.0, (2, "gpu"): -3.0}
    assert differences(left, right.iloc[:0]).empty
    assert mean_with_interval(found) == "−2.50 [−8.85, +3.85]"
    twice = pd.concat([right, right])
    for one, other in ((left, twice), (twice, left)):
        with pytest.raises(pd.errors.MergeError):  # a repeated seed is ambiguous
            differences(one, other)


def test_verdict_by_position_of_the_interval() -> None:
    assert verdict([], 0) == verdict([-5.0], 0) == "open"  # one seed has no interval
    assert np.isnan(interval([-5.0])).all()
    assert p_above([5.0], 0) == p_above([], 0) == 1.0
    assert verdict([1.0, 1.1, 1.2], 0) == "does not hold"
    assert verdict([1.0, 1.1, 1.2], 2) == "holds"
    assert verdict([-1.0, 0.0, -0.5], 0) == "open"
    low, high = interval([1.0, 2.0])
    margins = (low - 1e-6, low + 1e-6, high - 1e-6, high + 1e-6)
    verdicts = [verdict([1.0, 2.0], margin) for margin in margins]
    assert verdicts == ["does not hold", "open", "open", "holds"]
    # With zero variance the margin decides.
    assert verdict([1.0, 1.0, 1.0], 0) == "does not hold"
    assert verdict([0.0, 0.0, 0.0], 0) == verdict([1.0, 1.0, 1.0], np.nan) == "open"


def test_a_claim_needs_every_part_of_one_alternative() -> None:
    good, unclear, bad, single = [-1.0, -1.1, -0.9], [-1.0, 0.0, 1.0], [1.0, 1.1, 0.9], [9.0]
    assert judge_parts([[good, good]], 0) == ("holds", [["holds", "holds"]])
    assert judge_parts([[good, unclear]], 0) == ("open", [["holds", "open"]])
    assert judge_parts([[good, bad]], 0)[0] == "does not hold"
    assert judge_parts([[good, []]], 0)[0] == judge_parts([[]], 0)[0] == "open"
    assert judge_parts([[good, bad], [good, good]], 0)[0] == "holds"
    assert judge_parts([[good, bad], [good, unclear]], 0)[0] == "open"
    assert judge_parts([[good, bad], [bad, unclear]], 0)[0] == "does not hold"
    # The one-sided p = 0.0016 is below 0.025, but not after correction over 20 parts.
    assert judge_parts([[bad]], 0)[0] == "does not hold"
    assert judge_parts([[bad, *[unclear] * 19]], 0)[0] == "open"
    # t = 5.2 with two degrees of freedom: only the 97.5 % interval includes the margin.
    near = [-1.0, -1.4, -0.6]
    assert (judge_parts([[near]], 0)[0], judge_parts([[near], [bad]], 0)[0]) == ("holds", "open")
    # A part with one seed is open and does not count in the correction.
    assert judge_parts([[bad, single]], 0) == ("does not hold", [["does not hold", "open"]])
    above = [1.0, 1.5, 0.7]
    assert 0.0125 < stats.ttest_1samp(above, 0, alternative="greater").pvalue < 0.025
    assert judge_parts([[above, single]], 0)[1] == [["does not hold", "open"]]
    assert judge_parts([[above, above]], 0)[1] == [["open", "open"]]


def test_formatted_numbers_are_empty_for_missing_values() -> None:
    assert spread(1.5, 0.707) == "1.50 ± 0.71"
    assert spread(1.5, np.nan) == "1.50"
    assert spread(np.nan, 1.0) == ""
    assert with_interval(-0.5, np.nan, np.nan) == signed(-0.5) == "−0.50"
    assert signed(np.nan) == with_interval(np.nan, -1.0, 1.0) == mean_with_interval([]) == ""
