"""Verdicts, compared with hand-computed values, scipy and the paper's exceptions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_records import CELLS, PAPER, rows, study_of

from phaseavg.report import claims, claims_page
from phaseavg.report.claims import Evidence, Judgement, evidence, judge
from phaseavg.report.paper_claims import CLAIMS

CLAIM = {claim.name: claim for claim in CLAIMS}
NOISE = (-0.01, 0.0, 0.01)
GAMMAS = ("0.99", "0.95", "0.9", "0.8", "0.5")


def evidence_of(name: str, *entries: tuple) -> Evidence:
    claim = CLAIM[name]
    return evidence(claim, rows(*entries), PAPER.index)


def judged(name: str, *entries: tuple) -> Judgement:
    return judge(CLAIM[name], evidence_of(name, *entries))


def test_the_eleven_claims_refer_to_cells_of_the_tables() -> None:
    columns = {key[::3] for key in PAPER.index}
    for claim in CLAIMS:
        sides = [
            side for pair in (*claim.pairs, *claim.uncounted) for side in (pair.left, pair.right)
        ]
        assert set(sides) <= columns
    counts = {claim.name: len(evidence_of(claim.name).differences) for claim in CLAIMS}
    assert counts == {
        **{"C1": 24, "C2": 4, "C3": 12, "C4": 8, "C5": 8, "C6": 75},
        **{"C7": 36, "C8": 36, "C9": 36, "C10": 12, "C11": 12},
    }


def test_exceptions_in_the_papers_numbers() -> None:
    signs = {
        (claim.name, " ".join(cell)): claims.margin_side(difference, claim.margin or 0.0)
        for claim in CLAIMS
        for cell, difference in claims.differences_in(claim, PAPER).items()
    }
    assert {key for key, sign in signs.items() if sign == "above"} == {
        ("C7", "adam: averaged − 160 cifar10 resnet34"),
        ("C9", "SGD − adabound cifar10 resnet34"),
        ("C9", "SGD − adabound cifar10 densenet121"),
        ("C9", "SGD − adabound svhn densenet121"),
        *(("C11", f"160 − 80 {d} cnn13") for d in ("cifar100", "cifar10", "svhn")),
    }
    assert "equal" not in signs.values()


def c3(errors: dict[tuple[str, int], tuple[float, float]]) -> list[tuple]:
    """Return rows of SGD and of our method, by network and seed."""
    return [
        ("t1b", "cifar100", model, f"60-30-30-{which}", seed, error)
        for (model, seed), pair in errors.items()
        for which, error in zip(("sgd", "ours"), pair, strict=True)
    ]


def test_paired_differences_are_averaged_over_cells_then_seeds() -> None:
    errors = {
        **{("cnn13", 0): (30.0, 29.0), ("cnn13", 1): (31.0, 29.0), ("cnn13", 2): (30.0, 29.5)},
        **{("resnet34", 0): (20.0, 19.0), ("resnet34", 1): (21.0, 20.5)},
        ("resnet34", 2): (20.0, 19.0),
    }
    result = evidence_of("C3", *c3(errors))
    # By hand: seed 0: (−1 − 1) / 2, seed 1: (−2 − 0.5) / 2, seed 2: (−0.5 − 1) / 2.
    assert result.values == pytest.approx([-1.0, -1.25, -0.75])
    assert len(result.used) == 2  # of 12 cells
    # A diverged run and a run on another device have no pair.
    unpaired = c3(errors)[:6]
    unpaired[0] = (*unpaired[0][:5], np.nan, {"status": "diverged"})
    unpaired[2] = (*unpaired[2], {"execution": "a GPU, bf16"})
    assert list(evidence_of("C3", *unpaired).used.columns) == [2]


def test_the_largest_complete_block_is_used() -> None:
    frame = pd.DataFrame(np.ones((4, 6)))
    for network in range(4):
        frame.loc[network, network] = np.nan  # each network lacks another seed
    assert Evidence(frame, 0.0).used.shape == (3, 3)


def c6(worse: float, noise: tuple[float, ...] = NOISE) -> list[tuple]:
    """Return rows of Table 2: ours is worse than SGD and Lookahead, far better than the rest."""
    columns = {"ours": 20.0, "sgd": 20.0 - worse, "lookahead": 20.0 - worse}
    columns |= dict.fromkeys(("adam", "amsgrad", "adabound"), 40.0)
    networks = [(c.dataset, c.model) for c in CELLS if (c.table, c.column) == ("t2", "ours")]
    return [
        ("t2", *network, column, seed, error + (of_ours if column == "ours" else 0.0))
        for network in networks
        for column, error in columns.items()
        for seed, of_ours in enumerate(noise)
    ]


def test_c6_covers_every_data_set_and_network() -> None:
    worse = judged("C6", *c6(1.0))
    assert len(worse.parts) == 75
    assert worse.estimate.mean() == pytest.approx((2 * 1.0 - 3 * 20.0) / 5)  # far below 0
    assert worse.verdict == "does not hold"
    # The interval of each part is 1 ± 0.5; corrected for 75 parts it includes 0.
    assert judged("C6", *c6(1.0, noise=(-0.2, 0.0, 0.2))).verdict == "open"
    better = c6(-1.0)
    assert judged("C6", *better).verdict == "holds"
    missing = judged("C6", *better[:-2])
    assert (missing.verdict, missing.counted) == ("open", 74)


def c1(*means: float, seeds: int = 3, model: str = "cnn13") -> list[tuple]:
    """Return rows of Table 1a for `GAMMAS`, with equal differences for each seed."""
    return [
        ("t1a", "cifar100", model, f"gamma0-{gamma}", seed, mean + 0.5 * (seed - 1))
        for gamma, mean in zip(GAMMAS, means, strict=True)
        for seed in range(seeds)
    ]


def test_c1_holds_if_either_γ0_is_within_the_margin_of_all_others() -> None:
    result = judged("C1", *c1(25, 24, 23, 24, 25))
    assert result.evidence.margin == pytest.approx(0.5)  # the standard deviation of 0.9
    assert result.verdict == "holds"
    assert result.estimate == pytest.approx([-1, -1, -1])  # 0.9 − 0.8
    assert result.confidence == pytest.approx(0.975)
    assert list(result.words.values()) == ["holds"] * 6
    # 0.9 is within the margin of 0.8, but 0.95 is not.
    assert judged("C1", *c1(25, 24, 22.4, 22, 25)).verdict == "holds"
    result = judged("C1", *c1(25, 24, 23, 22, 25))
    assert result.verdict == "does not hold"
    assert result.estimate == pytest.approx([1, 1, 1])
    missing = judged("C1", *(entry for entry in c1(25, 24, 23, 24, 25) if "0.5" not in entry[3]))
    assert missing.verdict == "open"
    assert np.isnan(missing.evidence.margin)  # the best γ0 is unknown


def test_c1_needs_the_same_γ0_for_all_networks() -> None:
    cnn13, resnet34 = c1(25, 20, 23, 24, 25), c1(25, 30, 29, 24, 25, model="resnet34")
    result = judged("C1", *cnn13, *resnet34)
    assert result.verdict == "does not hold"  # although 0.95 is best for one network
    # A network with a single seed does not affect the margin.
    half = c1(25, 24, 23, 24, 25, seeds=1, model="resnet34")
    assert evidence_of("C1", *cnn13, *half).margin == pytest.approx(0.5)


def test_gains_of_further_phases_below_the_margin_do_not_count() -> None:
    entries = [
        (table, "svhn", "cnn13", column, seed, error)
        for seed in (0, 1, 2)
        for table, column, error in (("t3", "adam-ours", 3.0 + seed / 50), ("t4", "adam", 2.9))
    ]
    result = judged("C8", *entries)
    assert result.parts["adam: 80 − 160",].values == pytest.approx([0.1, 0.12, 0.14])
    assert result.words["adam: 80 − 160",] == "holds"  # it helps, but by less than 0.2


def test_cost_is_the_share_of_averaging_in_a_run() -> None:
    """SGD's time comes from another run, so the noise of the machine would affect a comparison."""
    entries = [
        (
            *("t1b", "cifar100", "cnn13", f"80-40-40-{which}", seed, 20.0),
            {"method_seconds": seconds, "averaging_seconds": averaging},
        )
        for seed in (0, 1, 2)
        for which, seconds, averaging in (("sgd", 300.0 * seed + 1, 0.0), ("ours", 103.0, 3.0))
    ]
    assert evidence_of("C10", *entries).values == pytest.approx([3.0, 3.0, 3.0])


def test_claims_page_and_frame(tmp_path: Path) -> None:
    errors = {(m, s): (30.0 + s / 10, 29.0) for m in ("cnn13", "resnet34") for s in range(3)}
    study = study_of(rows(*c3(errors)))
    study.rows["bn_test_error"] = 29.0
    study.request.common += ["model.width=0.1", "runs_dir=a"]
    page, table = claims_page.write_claims(study, tmp_path / "claims.md")
    text = page.read_text()
    assert "With model.width=0.1." in text
    assert "**open**: −1.100 [−1.348, −0.852], 3 seeds, 2 of 12 cells" in text
    assert "holds so far (not counted)" not in text  # no difference after a BN pass
    assert "below 0 in 35 of 36 cells; against it: cifar10 resnet34 (adam: averaged − 160)" in text
    verdicts = claims_page.read_verdicts(table)
    assert len(claims_page.summary_table(verdicts)) == 11
    part = verdicts.set_index(["claim", "part"]).loc["C3", "60-30-30: ours − SGD"]
    assert part["verdict"] == "holds so far"
    assert part[["mean", "low", "high"]].tolist() == pytest.approx(
        [-1.1, -1.1 - 0.248414, -1.1 + 0.248414]
    )
    assert (part["seeds"], part["cells"], part["all_cells"]) == (3, 2, 4)


def test_without_runs_all_claims_are_open_and_the_papers_numbers_shown() -> None:
    verdicts, text = claims_page.claims_page(study_of(rows()))
    assert set(verdicts["verdict"]) == {"open", "open (not counted)"}
    assert "mean −0.685, below 0 in 12 of 12 cells" in text
