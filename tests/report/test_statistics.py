"""Pairs, intervals, Holm's correction and verdicts: against scipy and by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from phaseavg.report.statistics import (
    SAME,
    differences,
    holm,
    interval,
    judged,
    mean_and_deviation,
    mean_with_interval,
    p_above,
    pairs,
    seeds_to_settle,
    signed,
    spread,
    verdict,
    with_interval,
)


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("confidence", [0.95, 0.975])
def test_the_interval_is_scipys_of_paired_values(n: int, confidence: float) -> None:
    left, right = np.random.default_rng(n).normal(25, 1, size=(2, n))
    expected = stats.ttest_rel(left, right).confidence_interval(confidence)
    assert interval(left - right, confidence) == pytest.approx(tuple(expected), rel=1e-12)
    one_sided = stats.ttest_1samp(left - right, 0.2, alternative="greater").pvalue
    assert p_above(left - right, 0.2) == pytest.approx(one_sided, rel=1e-12)


def test_holms_correction_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; never falling.
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)
    assert holm([0.5, 0.6]) == pytest.approx([1, 1])
    assert holm([]).size == 0


def test_pairs_have_seed_and_execution_in_common() -> None:
    def errors(*entries: tuple[int, str, float]) -> pd.Series:
        frame = pd.DataFrame(entries, columns=[*SAME, "error"])
        return frame.set_index(SAME)["error"]

    left = errors((0, "gpu", 20.0), (1, "gpu", 21.0), (2, "gpu", 22.0), (3, "gpu", np.nan))
    right = errors((2, "gpu", 25.0), (0, "gpu", 22.0), (1, "cpu", 30.0), (3, "gpu", 1.0))
    found = differences(left, right)
    assert found.to_dict() == {(0, "gpu"): -2.0, (2, "gpu"): -3.0}
    assert differences(left, right.iloc[:0]).empty
    assert (mean_with_interval(found), mean_with_interval([])) == ("−2.50 [−8.85, +3.85]", "")


def test_verdicts_and_the_seeds_that_would_settle_an_open_one() -> None:
    assert verdict([], 0) == "open"
    assert verdict([-5.0], 0) == "open"  # one seed has no interval
    assert interval([-5.0]) == (-np.inf, np.inf)
    assert verdict([1.0, 1.1, 1.2], 0) == "does not hold"
    assert verdict([1.0, 1.1, 1.2], 2) == "holds"
    values = np.array([-1.0, 0.0, -0.5])
    assert verdict(values, 0) == "open"
    needed = seeds_to_settle(values, 0)
    for n, clear in ((needed, True), (needed - 1, False)):
        half = stats.t.ppf(0.975, n - 1) * 0.5 / n**0.5
        assert bool(half < 0.5) is clear
    assert needed == 7
    assert seeds_to_settle(values, 0, tests=10) > needed
    assert seeds_to_settle(np.array([-1.0, 1.0]), 0) is None


def test_a_claim_is_the_weakest_of_its_parts_and_the_best_of_its_alternatives() -> None:
    good, unclear, bad = [-1.0, -1.1, -0.9], [-1.0, 0.0, 1.0], [1.0, 1.1, 0.9]
    assert judged([[good, good]], 0) == ("holds", [["holds", "holds"]])
    assert judged([[good, unclear]], 0) == ("open", [["holds", "open"]])
    assert judged([[good, bad]], 0)[0] == "does not hold"
    assert judged([[good, []]], 0)[0] == judged([[]], 0)[0] == judged([], 0)[0] == "open"
    assert judged([[good, bad], [good, good]], 0)[0] == "holds"
    assert judged([[good, bad], [good, unclear]], 0)[0] == "open"
    assert judged([[good, bad], [bad, unclear]], 0)[0] == "does not hold"
    # One-sided p = 0.0016 of a part alone is below 0.025, and not after a correction over 20.
    assert judged([[bad]], 0)[0] == "does not hold"
    assert judged([[bad, *[unclear] * 19]], 0)[0] == "open"
    # t = 5.2 of two degrees of freedom: 95 % are clear of the margin, 97.5 % are not.
    near = [-1.0, -1.3, -0.7]
    assert judged([[near]], 0)[0] == "holds"
    barely = [-1.0, -1.4, -0.6]
    assert (judged([[barely]], 0)[0], judged([[barely], [bad]], 0)[0]) == ("holds", "open")


def test_the_better_of_two_holds_wrongly_in_one_of_twenty_at_most() -> None:
    """The choice is in the level, with three seeds and a margin that is measured, too."""
    random, trials, wrong = np.random.default_rng(0), 60, 0
    for _ in range(trials):
        errors = random.normal(size=(5, 3))
        errors[:2] += 1.0  # both are worse than the others by the true deviation
        margin = errors[errors.mean(axis=1).argmin()].std(ddof=1)
        alternatives = [[one - other for other in errors[2:]] for one in errors[:2]]
        wrong += judged(alternatives, margin)[0] == "holds"
    assert wrong / trials <= 0.05


def test_without_any_spread_a_margin_decides() -> None:
    assert judged([[[1.0, 1.0, 1.0]]], 0)[0] == "does not hold"
    assert judged([[[0.0, 0.0, 0.0]]], 0)[0] == "open"
    assert judged([[[1.0, 1.0, 1.0]]], np.nan)[0] == "open"


def test_mean_and_deviation_in_words() -> None:
    assert mean_and_deviation(pd.Series([1.0, 2.0])) == "1.50 ± 0.71"
    assert mean_and_deviation(pd.Series([1.0]), "+") == "+1.00"
    assert mean_and_deviation(pd.Series([], dtype=float)) == ""


def test_what_is_missing_is_written_as_nothing() -> None:
    assert signed(np.nan) == with_interval(np.nan, -1.0, 1.0) == spread(np.nan, 1.0) == ""
    assert with_interval(-0.5, -np.inf, np.inf) == "−0.50"
    assert with_interval(np.nan, -np.inf, np.inf) == ""
    assert mean_with_interval([]) == ""


def test_the_same_seed_twice_makes_no_pair() -> None:
    index = pd.MultiIndex.from_tuples([(0, "gpu"), (0, "gpu")], names=SAME)
    once = pd.Series([1], index=index[:1])  # integers are numbers too
    with pytest.raises(pd.errors.MergeError):
        pairs(pd.Series([1, 2], index=index), once)
    with pytest.raises(pd.errors.MergeError):
        pairs(once, pd.Series([1, 2], index=index))
    assert pairs(once, once).dtypes.eq(float).all()


def test_p_values_are_probabilities() -> None:
    assert p_above([5.0], 0) == p_above([], 0) == 1.0
    assert max(holm([0.9, 0.8, 0.7])) == 1.0
    assert holm([1, 0]).tolist() == [1.0, 0.0]


def test_an_interval_that_touches_the_margin_decides_nothing() -> None:
    low, high = interval([1.0, 2.0])
    assert (verdict([1.0, 2.0], low), verdict([1.0, 2.0], high)) == ("open", "open")


def test_a_part_with_one_seed_is_open_and_takes_nothing_from_the_others() -> None:
    bad, single, pair = [1.0, 1.1, 0.9], [9.0], [1.0, 1.0001]
    assert judged([[bad, single]], 0) == ("does not hold", [["does not hold", "open"]])
    assert judged([[pair]], 0) == ("does not hold", [["does not hold"]])
    assert judged([[single]], 0) == ("open", [["open"]])
    # A p-value between 0.0125 and 0.025: below the level of one part, not of two.
    near = [1.0, 1.5, 0.7]
    assert 0.0125 < stats.ttest_1samp(near, 0, alternative="greater").pvalue < 0.025
    assert judged([[near, single]], 0)[1] == [["does not hold", "open"]]
    assert judged([[near, near]], 0)[1] == [["open", "open"]]


@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.4])
def test_the_seeds_that_would_settle_are_the_least_whose_interval_is_clear(margin: float) -> None:
    for values in ([1.0, 1.02], [0.5, 0.9, 1.3], [-2.0, 0.1, 1.5, 0.4]):
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        clear = (
            n
            for n in range(2, 10_001)
            if stats.t.ppf(0.975, n - 1) * deviation / n**0.5 < abs(mean - margin)
        )
        assert seeds_to_settle(values, margin) == next(clear, None)
