"""Verdicts: by hand, by scipy, and the paper's own exceptions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from made_records import rows

from phaseavg.report import claims, claims_page
from phaseavg.report.cells import read_paper, records_of
from phaseavg.report.claims import Evidence, Judgement, evidence, judge
from phaseavg.report.paper_claims import CLAIMS
from phaseavg.report.study import Study
from phaseavg.sweep.cells import Cell, Request

PAPER = read_paper(REPOSITORY / "results/paper.csv")
CLAIM = {claim.name: claim for claim in CLAIMS}
CELLS = [Cell(*key, ()) for key in PAPER.index]


def study_of(frame: pd.DataFrame) -> Study:
    """Return a study with rows that no record is behind."""
    study = Study(Request({}, CELLS), {}, *records_of([]), PAPER)
    study.rows = frame
    return study


def judged(name: str, frame: pd.DataFrame) -> Judgement:
    return judge(CLAIM[name], found(name, frame))


def found(name: str, frame: pd.DataFrame) -> Evidence:
    claim = CLAIM[name]
    return evidence(claim, frame, claims.networks_of(claim, CELLS))


def test_there_are_eleven_claims_about_cells_that_there_are() -> None:
    assert [claim.name for claim in CLAIMS] == [f"C{n}" for n in range(1, 12)]
    columns = {key[::3] for key in PAPER.index}
    for claim in CLAIMS:
        sides = [side for pair in (*claim.pairs, *claim.beside) for side in (pair.left, pair.right)]
        assert set(sides) <= columns
    counts = {claim.name: len(found(claim.name, rows()).differences) for claim in CLAIMS}
    assert counts == {
        **{"C1": 24, "C2": 4, "C3": 12, "C4": 8, "C5": 8, "C6": 75},
        **{"C7": 36, "C8": 36, "C9": 36, "C10": 12, "C11": 12},
    }


def against(name: str, sign: str = "above") -> set[str]:
    """Return the cells of the paper that have this sign."""
    figures = claims.exceptions(CLAIM[name], PAPER)
    return {" ".join(key) for key in figures.index[figures["sign"] == sign]}


def test_the_papers_own_exceptions_are_those_that_it_has() -> None:
    for name in ("C1", "C2", "C3", "C4", "C5", "C6"):
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


def c3(errors: dict[tuple[str, int], tuple[float, float]], length: str = "60-30-30") -> list[tuple]:
    """Return rows of SGD and ours, by network and seed."""
    return [
        ("t1b", "cifar100", model, f"{length}-{which}", seed, error)
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
    assert len(result.used) == 2  # of 12 cells


@pytest.mark.parametrize("name", ["C2", "C4"])
def test_claims_pair_by_seed_and_execution(name: str) -> None:
    """Values on two devices make no pair, in claims as in tables."""
    pair = CLAIM[name].pairs[0]
    gpu, cpu = {"execution": "a GPU, bf16"}, {"execution": "a CPU, fp32"}
    entries = [
        (side[0], "cifar100", "cnn13", side[1], seed, error + seed / 10, made_with)
        for seed in (0, 1, 2)
        for side, error, made_with in ((pair.left, 20.0, gpu), (pair.right, 30.0, cpu))
    ]
    assert found(name, rows(*entries)).values.size == 0
    assert judged(name, rows(*entries)).verdict == "open"
    alike = [(*entry[:6], gpu) for entry in entries]
    assert found(name, rows(*alike)).values == pytest.approx([-10, -10, -10])


NOISE = (-0.01, 0.0, 0.01)


def c4(lookahead: float, at_the_end: float = -5.0) -> list[tuple]:
    """Return rows of three seeds on all four networks, by the two differences."""
    return [
        (table, "cifar100", model, column, seed, error + noise)
        for model in ("cnn13", "resnet34", "wrn28_10", "densenet121")
        for seed, noise in enumerate(NOISE)
        for table, column, error in (
            ("t1c", "phase-wise", 20.0 + 2 * noise),
            ("t1c", "every-k", 20.0 - lookahead),
            ("t1c", "at-the-end", 20.0 - at_the_end),
        )
    ]


def test_a_claim_holds_only_if_every_part_holds() -> None:
    """Ours is 1 % worse than Lookahead: a large gain over the other comparison is no excuse."""
    assert judged("C4", rows(*c4(lookahead=-1.0))).verdict == "holds"
    worse = judged("C4", rows(*c4(lookahead=1.0)))
    assert worse.evidence.values == pytest.approx([-2.0] * 3, abs=0.1)  # the mean is for it
    assert worse.verdict == "does not hold"
    assert [word for _, word in worse.parts.values()] == ["holds", "does not hold"]
    undecided = judged("C4", rows(*c4(lookahead=0.0)))
    assert undecided.verdict == "open"
    missing = [entry for entry in c4(lookahead=-1.0) if entry[3] != "every-k"]
    assert judged("C4", rows(*missing)).verdict == "open"
    assert judged("C4", rows(*missing)).counted == 1


def c6(worse: float, noise: tuple[float, ...] = NOISE) -> pd.DataFrame:
    """Return rows of Table 2: ours worse than SGD and Lookahead, far better than the others."""
    columns = {"ours": 20.0, "sgd": 20.0 - worse, "lookahead": 20.0 - worse}
    columns |= dict.fromkeys(("adam", "amsgrad", "adabound"), 40.0)
    networks = [(c.dataset, c.model) for c in CELLS if (c.table, c.column) == ("t2", "ours")]
    return rows(
        *(
            ("t2", *network, column, seed, error + (of_ours if column == "ours" else 0.0))
            for network in networks
            for column, error in columns.items()
            for seed, of_ours in enumerate(noise)
        )
    )


def test_c6_is_about_every_data_set_and_network() -> None:
    worse = judged("C6", c6(1.0))
    assert len(worse.parts) == 75
    assert worse.estimate.mean() == pytest.approx((2 * 1.0 - 3 * 20.0) / 5)  # far below 0
    assert worse.verdict == "does not hold"
    # Of each part alone the interval is 1 ± 0.5; corrected for 75 parts it is not clear of 0.
    assert judged("C6", c6(1.0, noise=(-0.2, 0.0, 0.2))).verdict == "open"
    better = c6(-1.0)
    assert judged("C6", better).verdict == "holds"
    missing = judged("C6", better.iloc[:-2])
    assert (missing.verdict, missing.counted) == ("open", 74)


GAMMAS = ("0.99", "0.95", "0.9", "0.8", "0.5")


def c1(errors: dict[str, np.ndarray], model: str = "cnn13") -> list[tuple]:
    """Return rows of Table 1a, by γ0 the errors of the seeds."""
    return [
        ("t1a", "cifar100", model, f"gamma0-{gamma}", seed, error)
        for gamma, values in errors.items()
        for seed, error in enumerate(values)
    ]


def by_gamma(*means: float, deviation: float = 0.5) -> dict[str, np.ndarray]:
    """Return errors of three seeds whose differences are the same for each."""
    return {g: m + deviation * np.array([-1.0, 0, 1]) for g, m in zip(GAMMAS, means, strict=True)}


def test_c1_holds_if_one_of_the_two_is_within_the_margin_of_all_others() -> None:
    result = judged("C1", rows(*c1(by_gamma(25, 24, 23, 24, 25))))
    assert result.evidence.margin == pytest.approx(0.5)  # the deviation of 0.9
    assert result.verdict == "holds"
    assert result.estimate == pytest.approx([-1, -1, -1])  # 0.9 − 0.8
    assert result.confidence == pytest.approx(0.975)
    assert [word for _, word in result.parts.values()] == ["holds"] * 6
    # 0.95 is out of reach of 0.8, and 0.9 within the margin of it.
    assert judged("C1", rows(*c1(by_gamma(25, 24, 22.4, 22, 25)))).verdict == "holds"
    result = judged("C1", rows(*c1(by_gamma(25, 24, 23, 22, 25))))
    assert result.verdict == "does not hold"
    assert result.estimate == pytest.approx([1, 1, 1])


def test_c1_is_open_until_each_comparison_has_two_seeds() -> None:
    errors = by_gamma(25, 24, 23, 24, 25)
    del errors["0.5"]
    missing = judged("C1", rows(*c1(errors)))
    assert missing.verdict == "open"
    assert np.isnan(missing.evidence.margin)  # the best of all is not known


def test_one_γ0_has_to_serve_all_networks() -> None:
    one, other = by_gamma(25, 20, 23, 24, 25), by_gamma(25, 30, 29, 24, 25)
    result = judged("C1", rows(*c1(one), *c1(other, "resnet34")))
    assert result.verdict == "does not hold"  # though 0.95 is the best of one network


def test_a_half_run_network_leaves_the_margin_of_c1_alone() -> None:
    errors = by_gamma(25, 24, 23, 24, 25)
    single = {gamma: values[:1] for gamma, values in errors.items()}
    both = found("C1", rows(*c1(errors), *c1(single, "resnet34")))
    assert found("C1", rows(*c1(errors))).margin == both.margin == pytest.approx(0.5)


def test_a_run_that_diverged_counts_as_missing() -> None:
    entries = c3({("cnn13", seed): (30.0, 29.0) for seed in (0, 1, 2)})
    entries[0] = (*entries[0][:5], np.nan, {"status": "diverged"})
    assert list(found("C3", rows(*entries)).used.columns) == [1, 2]


def test_a_gain_of_further_phases_counts_only_above_its_margin() -> None:
    entries = [
        (table, "svhn", "cnn13", column, seed, error)
        for seed in (0, 1, 2)
        for table, column, error in (("t3", "adam-ours", 3.0 + seed / 50), ("t4", "adam", 2.9))
    ]
    result = judged("C8", rows(*entries))
    part, word = result.parts["adam: 80 − 160",]
    assert part.values == pytest.approx([0.1, 0.12, 0.14])
    assert word == "holds"  # it helps, but by less than 0.2
    found, cells = claims_page.verdicts(study_of(rows(*entries)))
    (line,) = cells[(cells["claim"] == "C8") & (cells["ours"] != "")].to_dict("records")
    assert line["sign"] == "below"
    whole = found[(found["claim"] == "C8") & (found["part"] == "")].iloc[0]
    assert (whole["margin"], whole["below"]) == (0.2, "1 of 1")


def test_cost_is_what_averaging_adds_inside_a_run() -> None:
    """SGD's seconds are another run's, and so of the machine's noise."""
    entries = []
    for seed in (0, 1, 2):
        for which, seconds, averaging in (("sgd", 300.0 * seed + 1, 0.0), ("ours", 103.0, 3.0)):
            made_with = {"method_seconds": seconds, "averaging_seconds": averaging}
            made_with |= {"device": "cuda" if seed else "cpu"}
            entries.append(("t1b", "cifar100", "cnn13", f"80-40-40-{which}", seed, 20.0, made_with))
    frame = rows(*entries)
    result = found("C10", frame)
    assert result.values == pytest.approx([1.03, 1.03, 1.03])
    claim = CLAIM["C10"]
    beside = evidence(claim, frame, claims.networks_of(claim, CELLS), claim.beside)
    assert beside.values == pytest.approx([103 / 301, 103 / 601])  # on a GPU alone


def page_of(frame: pd.DataFrame, remark: str = "") -> str:
    """Return the page of a study with these rows."""
    found, cells = claims_page.verdicts(study_of(frame))
    return claims_page.claims_page(found, cells, PAPER, PAPER, remark)


def test_the_frame_has_the_numbers_of_the_page(tmp_path: Path) -> None:
    errors = {("cnn13", seed): (30.0 + seed / 10, 29.0) for seed in range(3)}
    study = study_of(rows(*c3(errors)))
    found, _ = claims_page.verdicts(study)
    page, frame, *_ = claims_page.write_claims(study, PAPER, tmp_path / "claims.md")
    assert {page.name, frame.name} <= {path.name for path in tmp_path.iterdir()}
    again = claims_page.read_verdicts(tmp_path / "claims.csv")
    assert claims_page.summary_of(again).equals(claims_page.summary_of(found))
    whole, part = (
        again[(again["claim"] == "C3") & (again["part"] == p)].iloc[0]
        for p in ("", "60-30-30: ours − SGD")
    )
    assert whole["verdict"] == "open"
    assert part["verdict"] == "holds so far"
    assert part[["mean", "low", "high"]].tolist() == pytest.approx(
        [-1.1, -1.1 - 0.248414, -1.1 + 0.248414]
    )
    assert (part["seeds"], part["cells"], part["all_cells"]) == (3, 1, 4)


def test_the_page_names_claims_verdicts_cells_seeds_and_the_papers_exceptions() -> None:
    errors = {
        (m, seed): (30.0 + seed / 10, 29.0) for m in ("cnn13", "resnet34") for seed in range(3)
    }
    frame = rows(*c3(errors))
    frame["bn_test_error"] = 29.0
    text = page_of(frame, "With width=0.1.")
    assert "With width=0.1." in text
    assert (
        "**open**: −1.100 [−1.348, −0.852], 3 seeds, 2 of 12 cells; 1 of 3 parts have two seeds; "
        "below 0 in 2 of 2 cells" in text
    )
    assert "| 60-30-30: ours − SGD                  | holds so far" in text
    assert "SGD after a BN pass" in text
    assert "holds so far (not counted)" not in text  # after a BN pass there is no difference
    assert "below 0 in 35 of 36 cells; against it: cifar10 resnet34 (adam: averaged − 160)" in text
    assert (
        "| cifar100   | cnn13       | 60-30-30: ours − SGD  | 0 1 2   | −1.100 | below  | −0.810"
        in text
    )
    assert text.count("**open**") == 10 + 1  # not C10, and one explains the word
    assert text.count("not to be said from fewer than 2") >= 10


def test_without_any_run_all_is_open_and_the_papers_figures_stand() -> None:
    text = page_of(rows())
    assert text.count("**open**") == 11 + 1  # one explains the word
    assert "mean −0.685, below 0 in 12 of 12 cells" in text
