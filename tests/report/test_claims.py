"""Verdicts: by hand, by scipy, and the paper's own exceptions."""

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from made_records import rows
from scipy import stats

from phaseavg.report import claims, claims_page
from phaseavg.report.cells import read_paper
from phaseavg.report.claims import Evidence, evidence, interval, seeds_to_settle, verdict
from phaseavg.sweep.cells import Cell
from phaseavg.sweep.claims import CLAIMS

PAPER = read_paper(REPOSITORY / "results/paper.csv")
CLAIM = {claim.name: claim for claim in CLAIMS}
CELLS = [Cell(*key, ()) for key in PAPER.index]


def found(name: str, frame: pd.DataFrame) -> Evidence:
    claim = CLAIM[name]
    return evidence(claim, frame, claims.networks_of(claim, CELLS))


def test_there_are_eleven_claims_about_cells_that_there_are() -> None:
    assert [claim.name for claim in CLAIMS] == [f"C{n}" for n in range(1, 12)]
    columns = {key[::3] for key in PAPER.index}
    for claim in CLAIMS:
        sides = [side for pair in (*claim.pairs, *claim.beside) for side in (pair.left, pair.right)]
        assert {side for side in sides if side[1] != "best"} <= columns
    counts = {claim.name: len(found(claim.name, rows()).differences) for claim in CLAIMS}
    assert counts == {
        **{"C1": 4, "C2": 4, "C3": 12, "C4": 8, "C5": 8, "C6": 75},
        **{"C7": 36, "C8": 36, "C9": 36, "C10": 12, "C11": 12},
    }


def against(name: str, sign: str = "above") -> set[str]:
    """Return the cells of the paper that have this sign."""
    figures = claims.exceptions(CLAIM[name], PAPER)
    return {" ".join(key) for key in figures.index[figures["sign"] == sign]}


def test_the_papers_own_exceptions_are_those_that_it_has() -> None:
    for name in ("C2", "C3", "C4", "C5", "C6"):
        assert against(name) == set()
        assert against(name, "equal") == set()
    assert against("C7") == {"adam: averaged − 160 cifar10 resnet34"}
    assert against("C8") == {
        "amsgrad: 80 − 160 cifar10 resnet34",
        "amsgrad: 80 − 160 cifar10 densenet121",
        "adabound: 80 − 160 cifar10 densenet121",
    }
    assert against("C8", "equal") == {"adabound: 80 − 160 cifar10 resnet34"}
    assert against("C9") == {
        "SGD − adabound cifar10 resnet34",
        "SGD − adabound cifar10 densenet121",
        "SGD − adabound svhn densenet121",
    }
    assert against("C11") == {f"160 − 80 {d} cnn13" for d in ("cifar100", "cifar10", "svhn")}


def test_where_the_paper_is_within_one_deviation() -> None:
    figures = claims.exceptions(CLAIM["C6"], PAPER)
    assert {" ".join(key) for key in figures.index[figures["within"]]} == {
        "ours − lookahead cifar100 resnet34",
        "ours − lookahead cifar100 densenet121",
        "ours − lookahead svhn densenet121",
    }


def test_the_papers_regret_of_its_choice() -> None:
    figures = claims.exceptions(CLAIM["C1"], PAPER)["difference"]
    assert figures.to_list() == [0, 0, 0, 0]  # 0.95 or 0.9 is the best for every network
    (page,) = [
        p for p in claims_page.judged(CELLS, rows(), PAPER, PAPER) if p["claim"].name == "C1"
    ]
    assert page["paper"] == "mean regret +0.000"


def c3(errors: dict[tuple[str, int], tuple[float, float]], length: str = "60-30-30") -> list[tuple]:
    """Return rows of SGD and ours, by network and seed."""
    return [
        ("1b", "cifar100", model, f"{length}-{which}", seed, error)
        for (model, seed), pair in errors.items()
        for which, error in zip(("sgd", "ours"), pair, strict=True)
    ]


def test_differences_are_paired_averaged_over_cells_and_then_over_seeds() -> None:
    errors = {
        **{("cnn13", 0): (30.0, 29.0), ("cnn13", 1): (31.0, 29.0), ("cnn13", 2): (30.0, 29.5)},
        **{("resnet34", 0): (20.0, 19.0), ("resnet34", 1): (21.0, 20.5)},
        ("resnet34", 2): (20.0, 19.0),
    }
    result = found("C3", rows(*c3(errors)))
    # By hand: seed 0: (−1 − 1) / 2, seed 1: (−2 − 0.5) / 2, seed 2: (−0.5 − 1) / 2.
    assert result.values == pytest.approx([-1.0, -1.25, -0.75])
    low, high = interval(result.values)
    assert (low, high) == pytest.approx((-1 - 4.302653 * 0.25 / 3**0.5, -1 + 0.621034), abs=1e-6)
    assert verdict(result.values, 0) == "holds"
    assert len(result.used) == 2  # of 12 cells
    expected = stats.ttest_1samp(result.values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_the_cells_used_are_the_largest_block_without_a_gap() -> None:
    errors = {("cnn13", seed): (30.0, 29.0) for seed in (0, 1, 2)}
    errors |= {("resnet34", 0): (20.0, 25.0)}
    result = found("C3", rows(*c3(errors)))  # 1 × 3 rather than 2 × 1
    assert result.values == pytest.approx([-1, -1, -1])
    assert result.used.index.to_list() == [("60-30-30: ours − SGD", "cifar100", "cnn13")]
    errors |= {("resnet34", 1): (20.0, 25.0)}
    result = found("C3", rows(*c3(errors)))  # 2 × 2
    assert result.values == pytest.approx([2, 2])
    errors |= {("resnet34", 2): (20.0, 25.0), ("cnn13", 3): (30.0, 29.0)}
    result = found("C3", rows(*c3(errors)))  # more seeds of one cell leave the others in
    assert result.values == pytest.approx([2, 2, 2])
    single = found("C3", rows(*c3({("cnn13", 4): (30.0, 29.0)})))
    assert single.values == pytest.approx([-1])


def test_a_half_run_network_leaves_the_margin_of_c1_alone() -> None:
    def errors(model: str, seeds: range) -> list[tuple]:
        return [
            ("1a", "cifar100", model, column, seed, 20.0 + number + seed)
            for number, column in enumerate(claims.GAMMAS)
            for seed in seeds
        ]

    whole = found("C1", rows(*errors("cnn13", range(3))))
    both = found("C1", rows(*errors("cnn13", range(3)), *errors("resnet34", range(1))))
    assert whole.margin == both.margin == 1.0


def test_a_run_that_diverged_counts_as_missing() -> None:
    entries = c3({("cnn13", seed): (30.0, 29.0) for seed in (0, 1, 2)})
    entries[0] = (*entries[0][:5], np.nan, {"status": "diverged"})
    assert list(found("C3", rows(*entries)).used.columns) == [1, 2]


def test_verdicts_and_the_seeds_that_would_settle_an_open_one() -> None:
    assert verdict(np.array([]), 0) == "open"
    assert verdict(np.array([-5.0]), 0) == "open"  # one seed has no interval
    assert interval(np.array([-5.0])) == (-np.inf, np.inf)
    assert verdict(np.array([1.0, 1.1, 1.2]), 0) == "does not hold"
    assert verdict(np.array([1.0, 1.1, 1.2]), 2) == "holds"
    values = np.array([-1.0, 0.0, -0.5])
    assert verdict(values, 0) == "open"
    needed = seeds_to_settle(values, 0)
    for n, clear in ((needed, True), (needed - 1, False)):
        half = stats.t.ppf(0.975, n - 1) * 0.5 / n**0.5
        assert bool(half < 0.5) is clear
    assert needed == 7
    assert seeds_to_settle(np.array([-1.0, 1.0]), 0) is None


def test_regret_is_of_the_better_of_the_two_against_the_best() -> None:
    errors = {
        **{"gamma0-0.99": (5.0, 6.0), "gamma0-0.95": (4.0, 5.0), "gamma0-0.9": (4.5, 5.0)},
        **{"gamma0-0.8": (3.0, 4.5), "gamma0-0.5": (9.0, 9.0)},
    }
    entries = [
        ("1a", "cifar100", "cnn13", column, seed, error)
        for column, pair in errors.items()
        for seed, error in enumerate(pair)
    ]
    result = found("C1", rows(*entries))
    assert result.values == pytest.approx([1.0, 0.5])  # 0.95 against 0.8
    assert result.margin == pytest.approx(np.std([3.0, 4.5], ddof=1))
    missing = [entry for entry in entries if entry[3] != "gamma0-0.5"]
    assert len(found("C1", rows(*missing)).values) == 0


def test_a_gain_of_further_phases_counts_only_above_its_margin() -> None:
    entries = [
        (table, "svhn", "cnn13", column, seed, error)
        for seed in (0, 1, 2)
        for table, column, error in (("3", "adam-ours", 3.0 + seed / 50), ("4", "adam", 2.9))
    ]
    result = found("C8", rows(*entries))
    assert result.values == pytest.approx([0.1, 0.12, 0.14])
    assert verdict(result.values, result.margin) == "holds"  # it helps, but by less than 0.2
    assert verdict(result.values, 0) == "does not hold"


def test_cost_is_a_ratio_of_runs_with_the_same_execution() -> None:
    entries = []
    for seed, execution in ((0, "x"), (1, "x"), (2, "y")):
        for which, seconds in (("sgd", 100.0), ("ours", 101.0 + seed)):
            made_with = {
                "method_seconds": seconds,
                "execution": "x" if which == "sgd" else execution,
            }
            entries.append(("1b", "cifar100", "cnn13", f"80-40-40-{which}", seed, 20.0, made_with))
    result = found("C10", rows(*entries))
    assert result.values == pytest.approx([1.01, 1.02])


def test_the_page_names_claims_verdicts_cells_seeds_and_the_papers_exceptions() -> None:
    errors = {
        (m, seed): (30.0 + seed / 10, 29.0) for m in ("cnn13", "resnet34") for seed in range(3)
    }
    frame = rows(*c3(errors))
    frame.loc[frame["column"].str.endswith("sgd"), "bn_test_error"] = 29.0
    text = claims_page.claims_page(
        claims_page.judged(CELLS, frame, PAPER, PAPER), "With width=0.1."
    )
    assert "With width=0.1." in text
    assert (
        "**holds so far**: −1.100 [−1.348, −0.852], 3 seeds, 2 of 12 cells; below 0 in 2 of 2"
        in text
    )
    assert "SGD after a BN pass" in text
    assert "holds so far (not counted)" not in text  # after a BN pass there is no difference
    assert "below 0 in 35 of 36 cells; against it: cifar10 resnet34 (adam: averaged − 160)" in text
    assert (
        "| cifar100   | cnn13       | 60-30-30: ours − SGD  | 0 1 2   | −1.100 | below  | −0.810"
        in text
    )
    assert text.count("**open**") == 10
    assert text.count("not to be said from fewer than 2") >= 10


def test_without_any_run_all_is_open_and_the_papers_figures_stand() -> None:
    text = claims_page.claims_page(claims_page.judged(CELLS, rows(), PAPER, PAPER))
    assert text.count("**open**") == 11 + 1  # one explains the word
    assert "mean −0.685, below 0 in 12 of 12 cells" in text
