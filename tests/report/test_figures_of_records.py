"""The numbers in the figures that need no training: by hand, and from what a run has seen."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, TINY, Prompt
from made_records import keep, line

from phaseavg.averaging.weights import Exponential, coefficients
from phaseavg.errors import UserError
from phaseavg.report.cells import read_paper, records_of
from phaseavg.report.figures.drawing import write
from phaseavg.report.figures.gamma import draw as draw_gamma
from phaseavg.report.figures.of_cells import command
from phaseavg.report.figures.of_records import OF_RECORDS
from phaseavg.report.figures.phases import AFTER
from phaseavg.report.figures.phases import draw as draw_phases
from phaseavg.report.figures.schedules import fig6
from phaseavg.report.figures.sharing import ALL, RECORDED
from phaseavg.report.figures.sharing import draw as draw_sharing
from phaseavg.report.figures.weights import LENGTHS, fig4, fig5
from phaseavg.report.study import Study
from phaseavg.sweep.cells import read_request, runs_of
from phaseavg.sweep.composing import composing

CONF = REPOSITORY / "conf"
PAPER = read_paper(REPOSITORY / "results/paper.csv")
LEARNT = {0: [0.5, -0.25, 0.75], 1: [0.25, 0.0, 0.75]}
ERRORS = {  # by table and column: of each seed
    ("t1a", "gamma0-0.9"): {0: 26.0, 1: 25.0},
    ("t1a", "gamma0-0.5"): {0: 27.0},
    ("t1a", "learnt"): {0: 30.0, 1: 31.0},
    ("t1b", "80-40-40-sgd"): {0: 28.0, 1: 29.0},
    ("t1d", "cosine"): {0: 24.0},
}


def closed_form(gamma0: float, epochs: int) -> np.ndarray:
    """Return (1 − γ) γ^(T−t) / (1 − γ^T) of t = 1…T in float64."""
    gamma = gamma0 ** (80 / epochs)
    t = np.arange(1, epochs + 1)
    return (1 - gamma) * gamma ** (epochs - t) / (1 - gamma**epochs)


@pytest.fixture(scope="module")
def unrun(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return Table 1 of one network without a record."""
    folder = tmp_path_factory.mktemp("study")
    places = (f"runs_dir={folder}/runs", f"records_dir={folder}/records")
    with composing(CONF) as (options, compose):
        asked = ["table=t1a,t1b,t1c,t1d", "model=cnn13", *places]
        request = read_request(asked, options, compose)
        runs = runs_of(request.cells, request.seeds, compose)
    return Study(request, runs, *records_of([]), PAPER)


def metrics_of(error: float, averaged: bool, phases: int) -> list[dict[str, Any]]:
    """Return metrics of phases of 3 epochs: the error falls by 10 from one's end to the next's."""
    lines = [line(epoch) for epoch in range(1, 3 * phases + 1)]
    for number in range(1, phases + 1):
        now = error + 10 * (phases - number)
        errors = (now + 2, now + 1, now) if averaged else (now, now - 0.5)
        lines[3 * number - 1] = line(3 * number, *errors, phase=number, replaced=averaged)
    return lines


@pytest.fixture(scope="module")
def study(unrun: Study) -> Study:
    """Return the same with records of some of its cells."""
    for (table, column), errors in ERRORS.items():
        for run in unrun.runs.values():
            seed = run.settings.seed
            if seed in errors and any((c.table, c.column) == (table, column) for c in run.cells):
                averaged = "NoAveraging" not in run.settings.averaging["_target_"]
                lines = metrics_of(errors[seed], averaged, 1 if column == "cosine" else 3)
                if column == "learnt":
                    lines[2]["average"]["coefficients"] = LEARNT[seed]
                    lines[5]["average"]["coefficients"] = [1.0]
                keep(run.settings, errors[seed], metrics=lines)
    records, metrics = records_of(unrun.runs.values())
    return replace(unrun, records=records, metrics=metrics)


def test_exponential_weights_sum_to_one_and_are_the_closed_form() -> None:
    (drawing,) = fig4([], CONF)
    assert list(drawing.data["epochs"].unique()) == list(LENGTHS)
    for epochs, lines in drawing.data.groupby("epochs"):
        assert math.fsum(lines["weight"]) == pytest.approx(1, abs=1e-14)
        assert list(lines["epoch"]) == list(range(1, epochs + 1))
        assert lines["weight"].to_numpy() == pytest.approx(closed_form(0.9, epochs), rel=1e-12)
    left, right = drawing.picture.axes
    drawn = left.get_lines()[0].get_xydata()
    assert drawn[:, 1] == pytest.approx(closed_form(0.9, LENGTHS[0]), rel=1e-12)
    assert right.get_lines()[-1].get_xydata()[-1] == pytest.approx(
        [1, 160 * closed_form(0.9, 160)[-1]]
    )


def test_their_gamma0_can_be_set() -> None:
    (drawing,) = fig4(["averaging.weights.gamma0=0.5"], CONF)
    ten = drawing.data[drawing.data["epochs"] == 10]
    assert ten["weight"].to_numpy() == pytest.approx(closed_form(0.5, 10), rel=1e-12)
    with pytest.raises(UserError, match=r"averaging\.weights"):
        fig4(["averaging/weights=rna"], CONF)


ELSEWHERE = ("table=t1a,t1d", "column=learnt,x", "seed=0,1", "model=cnn13,resnet34", "budget=2h")
"""What narrows the figures of records."""


def test_overrides_of_other_figures_do_not_change_the_weights() -> None:
    (plain,) = fig4([], CONF)
    asked = ["preset=mini", "schedule=constant-80,cosine", "schedule.divisor=10"]
    asked += ["save_trajectory=steps"]
    (drawing,) = fig4([*asked, *ELSEWHERE, "data_dir='a b'"], CONF)
    pd.testing.assert_frame_equal(drawing.data, plain.data)


@pytest.mark.parametrize(
    "own",
    [
        ["schedule=constant-80"],
        ["+schedule=constant-80"],
        ["schedule=decayed", "schedule.shape.per=step"],
        ["schedule.epochs=[3]", "schedule.factors=[1]"],
        ["save_trajectory=steps", "data_dir='a b'"],
        ELSEWHERE,
    ],
)
def test_overrides_of_other_figures_do_not_change_the_schedules(own: list[str]) -> None:
    (plain,) = fig6(["preset=mini"], CONF)
    (drawing,) = fig6(["preset=mini", *own], CONF)
    pd.testing.assert_frame_equal(drawing.data, plain.data)
    assert [len(lines) for _, lines in drawing.data.groupby("curve")] == [16, 16, 16]
    (longer,) = fig6(["preset=mini", *own, "schedule.divisor=5"], CONF)
    assert [len(lines) for _, lines in longer.data.groupby("curve")] == [32, 32, 32]


def test_mistakes_in_overrides_are_told() -> None:
    for draw in (fig4, fig6):
        for wrong in ("nothing=1", "optimizer=none", "optimizer.lr=fast", "a b=c,"):
            with pytest.raises(UserError):
                draw([wrong], CONF)


def test_weights_so_far_sum_to_one_too() -> None:
    assert coefficients(Exponential(), 10, 0) == []
    assert math.fsum(coefficients(Exponential(), 10, 4)) == pytest.approx(1, abs=1e-15)


def test_learnt_weights_are_those_of_the_records(study: Study) -> None:
    (drawing,) = fig5(study)
    assert drawing.name == "fig5-cifar100-cnn13"
    learnt = drawing.data[drawing.data["weights"] == "learnt"]
    by_seed = {int(s): list(lines["weight"]) for s, lines in learnt.groupby("seed")}
    assert by_seed == LEARNT  # of the first phase, not of the second
    others = drawing.data[drawing.data["weights"] != "learnt"].groupby("weights")
    found = {name: lines["weight"].to_numpy() for name, lines in others}
    assert set(found) == {f"gamma0-{g}" for g in ("0.99", "0.95", "0.9", "0.8", "0.5")}
    for name, weights in found.items():
        expected = closed_form(float(name.removeprefix("gamma0-")), 3)
        assert weights == pytest.approx(expected, rel=1e-12)
    (axes,) = drawing.picture.axes
    assert list(axes.get_lines()[-1].get_ydata()) == [0.375, -0.125, 0.75]  # their mean
    assert "t1a/cifar100/cnn13/learnt (seeds 2)" in drawing.missing


def test_more_columns_than_colours_are_all_drawn(study: Study) -> None:
    table = study.request.tables["t1a"]
    gammas = [number / 20 for number in range(1, 20)]
    more = {f"g-{g}": ["averaging=phasewise", f"averaging.weights.gamma0={g}"] for g in gammas}
    tables = study.request.tables | {"t1a": table.model_copy(update={"columns": more})}
    (drawing,) = fig5(replace(study, request=replace(study.request, tables=tables)))
    assert set(drawing.data["weights"]) == {"learnt", *more}
    (axes,) = drawing.picture.axes
    labels = {line.get_label() for line in axes.get_lines()}
    assert {f"γ0 = {g:g}" for g in gammas} <= labels


def test_all_lengths_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phaseavg.report.figures.weights.LENGTHS", tuple(range(2, 14)))
    (drawing,) = fig4([], CONF)
    assert all(len(axes.get_lines()) == 12 for axes in drawing.picture.axes)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["table=t1a"], "table=t1a dataset=cifar100 model=cnn13"),
        (
            ["table=t1a", "seed=0", "column=gamma0-0.9,learnt"],
            "table=t1a dataset=cifar100 model=cnn13 column=gamma0-0.9,learnt seed=0",
        ),
        (["table=t1a", "seed=2,1,0"], "table=t1a dataset=cifar100 model=cnn13 seed=2,1,0"),
        (
            ["table=t1a,t1d", "column=learnt,cosine"],
            "table=t1a,t1d dataset=cifar100 model=cnn13 column=learnt,cosine",
        ),
        (["table=t1d,t1a"], "table=t1d,t1a dataset=cifar100 model=cnn13"),
    ],
)
def test_the_told_command_trains_what_is_asked_for(asked: list[str], told: str) -> None:
    with composing(CONF) as (options, compose):
        request = read_request([*asked, "model=cnn13"], options, compose)
        study = Study(request, {}, *records_of([]), PAPER)
        command_line = command(study, request.cells)
        prefix = "python train.py -m "
        assert command_line == prefix + told
        again = read_request(command_line.removeprefix(prefix).split(), options, compose)
    assert again == request


def test_errors_by_gamma0_are_those_of_the_records_and_the_paper(study: Study) -> None:
    (drawing,) = draw_gamma(study)
    ours = drawing.data[drawing.data["whose"] == "ours"]
    rows = set(ours[["gamma0", "seed", "test_error"]].itertuples(index=False, name=None))
    assert rows == {(0.9, 0, 26.0), (0.9, 1, 25.0), (0.5, 0, 27.0)}
    theirs = drawing.data[drawing.data["whose"] == "the paper's"].set_index("gamma0")
    assert theirs["test_error"].to_dict() == {
        g: PAPER["error_mean"]["t1a", "cifar100", "cnn13", f"gamma0-{g}"]
        for g in (0.5, 0.8, 0.9, 0.95, 0.99)
    }
    assert theirs["deviation"][0.9] == 0.08
    left, right = drawing.picture.axes
    points = left.get_lines()[0].get_xydata()
    assert points[:, 0] == pytest.approx([0.5, 0.1])
    assert points[:, 1] == pytest.approx([27.0, 25.5])
    assert [label.get_text() for label in right.get_xticklabels()] == [
        "0.5",
        "0.8",
        "0.9",
        "0.95",
        "0.99",
    ]
    assert "t1a/cifar100/cnn13/gamma0-0.99, " in drawing.missing


def test_errors_at_phase_ends_are_those_of_the_records(study: Study) -> None:
    (drawing,) = draw_phases(study)
    data = drawing.data[drawing.data["schedule"] == "80-40-40"]
    found = {
        (row.method, row.seed, row.phase): row.test_error for row in data.itertuples(index=False)
    }
    expected = {}
    for seed, error in ERRORS["t1b", "80-40-40-sgd"].items():
        for phase, more in ((1, 20), (2, 10), (3, 0)):
            expected["SGD", seed, phase] = error + more
            expected[AFTER, seed, phase] = error + more - 0.5
    names = {"gamma0-0.9": "phase-wise, γ0 = 0.9", "gamma0-0.5": "phase-wise, γ0 = 0.5"}
    names["learnt"] = "phase-wise, learnt weights"
    for column, name in names.items():
        for seed, error in ERRORS["t1a", column].items():
            for phase, more in ((1, 20), (2, 10), (3, 0)):
                expected[name, seed, phase] = error + more  # of the average
    expected["SGD, cosine rate", 0, 1] = 24.0
    assert found == expected
    assert set(data.loc[data["method"] == names["learnt"], "weights"]) == {"the average"}
    first, _, last = drawing.picture.axes
    places = dict(
        zip([t.get_text() for t in first.get_yticklabels()], first.get_yticks(), strict=True)
    )
    assert places[AFTER] == places["SGD"] + 1
    of_cosine = places["SGD, cosine rate"]

    def at_cosine(axes: Any) -> list[float]:
        ends = [line.get_xydata() for line in axes.get_lines()]
        return [float(x) for points in ends for x, y in points if y == of_cosine]

    assert not at_cosine(first)
    assert set(at_cosine(last)) == {24.0}  # its one phase ends with the training


def test_sharing_has_the_numbers_of_the_readme(study: Study) -> None:
    (drawing,) = draw_sharing(study)
    lines = drawing.data.set_index("what")
    line = lines.loc[ALL]
    readme = (REPOSITORY / "README.md").read_text()
    numbers = [line[key] for key in ("asked for", "equal runs merged", "shared")]
    assert numbers == [8640, 7200, 4380]
    assert f"| Table 1, a network | {' | '.join(f'{n:,}' for n in numbers)} |" in readme
    recorded = lines.loc[RECORDED]
    assert recorded["runs"] == sum(map(len, ERRORS.values()))
    # Seven made records of three phases of three epochs, and the cosine's of one.
    assert recorded["trained"] == 7 * 9 + 3
    # γ0 = 0.9 is a cell of 1a and of 1b, SGD of 80-40-40 one of 1b, 1c and 1d.
    assert recorded["equal runs merged"] == 8 * 160
    assert recorded["asked for"] == sum(
        160 * len(run.cells) for run in study.runs.values() if run.settings.run_folder.exists()
    )


def test_rates_are_those_that_the_optimizer_had(prompt: Prompt, tmp_path: Path) -> None:
    common = [o for o in TINY if not o.startswith("schedule")] + ["evaluation.every=0"]
    overrides = [*common, "+schedule.divisor=40"]
    (drawing,) = fig6(overrides, CONF)
    by_curve = dict(iter(drawing.data.groupby("curve")))
    assert len(by_curve) == 3
    names = {"80-40-40": "steps, 80-40-40", "decayed": "decayed", "cosine": "cosine"}
    for option, name in names.items():
        asked = [*overrides, f"schedule={option}", f"runs_dir={option}", "averaging=none"]
        status, _, err = prompt(*asked)
        assert (status, err) == (0, "")
        (path,) = (tmp_path / option).glob("*/metrics.jsonl")
        metrics = pd.read_json(path, lines=True)
        lines = by_curve[name]
        assert list(lines["epoch"] + 1) == list(metrics["epoch"]) == [1, 2, 3, 4]
        assert list(lines["learning_rate"]) == pytest.approx(
            list(metrics["learning_rate"]), rel=1e-15
        )
    assert by_curve["decayed"]["learning_rate"].nunique() == 4


@pytest.mark.parametrize("name", OF_RECORDS)
def test_without_a_record_it_says_so(unrun: Study, study: Study, name: str, tmp_path: Path) -> None:
    none = replace(
        unrun,
        runs={i: r for i, r in unrun.runs.items() if not r.settings.run_folder.exists()},
    )
    for drawing in OF_RECORDS[name].draw(none):
        assert "python train.py -m runs_dir=" in drawing.missing
        assert "table=t1a" in drawing.missing
        assert len(drawing.data) == (2 if name == "sharing" else 0)
        assert bool(write(drawing, tmp_path)) == (name == "sharing")


@pytest.mark.parametrize("name", OF_RECORDS)
def test_tables_that_are_not_asked_for_leave_it_blank(unrun: Study, name: str) -> None:
    request = replace(unrun.request, cells=[], tables={})
    (drawing,) = OF_RECORDS[name].draw(replace(unrun, request=request, runs={}))
    assert drawing.missing
    assert drawing.data.empty


def test_the_same_numbers_give_the_same_files(study: Study, tmp_path: Path) -> None:
    for draw in (fig5, draw_gamma, draw_phases):
        first, again = (write(*draw(study), tmp_path / folder) for folder in ("a", "b"))
        assert len(first) == 3
        for one, other in zip(first, again, strict=True):
            assert one.read_bytes() == other.read_bytes()
