"""Figures of settings and records, compared with hand-computed values."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import REPOSITORY
from made_records import PAPER, make_record, metrics_line
from matplotlib.figure import Figure
from reference import alphas

from phaseavg.errors import UserError
from phaseavg.report.cells import read_records
from phaseavg.report.figures import (
    FIGURES,
    Inputs,
    fig4,
    fig5,
    gamma0,
    phases,
    write,
)
from phaseavg.report.study import Study
from phaseavg.sweep.cells import cell_runs, read_request, unique_runs
from phaseavg.sweep.composing import composing

CONF = REPOSITORY / "conf"
LEARNT = {0: [0.5, -0.25, 0.75], 1: [0.25, 0.0, 0.75]}
ERRORS = {  # by table and column, one per seed
    ("t1a", "gamma0-0.9"): {0: 26.0, 1: 25.0},
    ("t1a", "gamma0-0.5"): {0: 27.0},
    ("t1a", "learnt"): {0: 30.0, 1: 31.0},
    ("t1b", "80-40-40-sgd"): {0: 28.0, 1: 29.0},
    ("t1d", "cosine"): {0: 24.0},
}


def computed(name: str, *overrides: str) -> tuple[Figure, pd.DataFrame]:
    inputs = Inputs(overrides)
    ((_, drawn),) = FIGURES[name].drawings(name, inputs)
    return drawn


def metrics_of(error: float, averaged: bool, phases: int) -> list[dict[str, Any]]:
    """Return metrics of phases with 3 epochs; the error falls by 10 per phase."""
    lines = [metrics_line(epoch) for epoch in range(1, 3 * phases + 1)]
    for number in range(1, phases + 1):
        now = error + 10 * (phases - number)
        errors = (now + 2, now + 1, now) if averaged else (now, now - 0.5)
        lines[3 * number - 1] = metrics_line(3 * number, *errors, phase=number, replaced=averaged)
    return lines


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return Table 1 with one network and records of some cells."""
    folder = tmp_path_factory.mktemp("study")
    places = (f"runs_dir={folder}/runs", f"records_dir={folder}/records")
    with composing(CONF) as (options, compose):
        overrides = ["table=t1a,t1b,t1c,t1d", "model=cnn13", *places]
        request = read_request(overrides, options, compose)
        runs = unique_runs(cell_runs(request.cells, request.seeds, compose))
    for (table, column), errors in ERRORS.items():
        for run in runs.values():
            seed = run.settings.seed
            if seed in errors and any((c.table, c.column) == (table, column) for c in run.cells):
                averaged = "NoAveraging" not in run.settings.averaging["_target_"]
                lines = metrics_of(errors[seed], averaged, 1 if column == "cosine" else 3)
                if column == "learnt":
                    lines[2]["average"]["coefficients"] = LEARNT[seed]
                    lines[5]["average"]["coefficients"] = [1.0]
                make_record(run.settings, errors[seed], metrics=lines)
    return Study(request, runs, *read_records(runs.values()), PAPER)


def test_exponential_coefficients_sum_to_one_and_match_the_closed_form() -> None:
    picture, data = computed("fig4")
    lengths = fig4.LENGTHS
    assert list(data["epochs"].unique()) == list(lengths)
    for epochs, lines in data.groupby("epochs"):
        assert math.fsum(lines["weight"]) == pytest.approx(1, abs=1e-14)
        assert list(lines["epoch"]) == list(range(1, epochs + 1))
        assert lines["weight"].to_numpy() == pytest.approx(alphas(0.9, epochs), rel=1e-12)
    left, right = picture.axes
    drawn = left.get_lines()[0].get_xydata()
    assert drawn[:, 1] == pytest.approx(alphas(0.9, lengths[0]), rel=1e-12)
    assert right.get_lines()[-1].get_xydata()[-1] == pytest.approx([1, 160 * alphas(0.9, 160)[-1]])


def test_learning_rates_follow_their_schedules() -> None:
    _, data = computed("fig6")
    rates = {name: list(lines["learning_rate"]) for name, lines in data.groupby("curve")}
    assert {name: len(curve) for name, curve in rates.items()} == dict.fromkeys(rates, 160)
    assert rates["steps, 80-40-40"] == pytest.approx([0.1] * 80 + [0.01] * 40 + [0.001] * 40)
    expected = [0.05 * (1 + math.cos(math.pi * epoch / 160)) for epoch in range(160)]
    assert rates["cosine"] == pytest.approx(expected)
    first_phase = [0.1 * sum(alphas(0.9, 80)[t:]) for t in range(80)]  # equation 6
    assert rates["decayed"][:80] == pytest.approx(first_phase)


def test_learnt_coefficients_match_the_records(study: Study) -> None:
    picture, data = fig5.draw(study)
    learnt = data[data["weights"] == "learnt"]
    by_seed = {int(s): list(lines["weight"]) for s, lines in learnt.groupby("seed")}
    assert by_seed == LEARNT  # the first phase, not the second
    others = data[data["weights"] != "learnt"].groupby("weights")
    found = {name: lines["weight"].to_numpy() for name, lines in others}
    assert set(found) == {f"gamma0-{g}" for g in ("0.99", "0.95", "0.9", "0.8", "0.5")}
    for name, weights in found.items():
        expected = alphas(float(name.removeprefix("gamma0-")), 3)
        assert weights == pytest.approx(expected, rel=1e-12)
    (axes,) = picture.axes
    assert list(axes.get_lines()[-1].get_ydata()) == [0.375, -0.125, 0.75]  # their mean


def test_more_columns_than_colours_are_all_drawn(study: Study) -> None:
    table = study.request.tables["t1a"]
    gammas = [number / 20 for number in range(1, 20)]
    more = {f"g-{g}": ["averaging=phasewise", f"averaging.weights.gamma0={g}"] for g in gammas}
    tables = study.request.tables | {"t1a": table.model_copy(update={"columns": more})}
    picture, data = fig5.draw(replace(study, request=replace(study.request, tables=tables)))
    assert set(data["weights"]) == {"learnt", *more}
    (axes,) = picture.axes
    labels = {line.get_label() for line in axes.get_lines()}
    assert {f"γ0 = {g:g}" for g in gammas} <= labels


def test_errors_by_gamma0_match_the_records_and_the_paper(study: Study) -> None:
    picture, data = gamma0.draw(study)
    ours = data[data["whose"] == "ours"]
    rows = set(ours[["gamma0", "seed", "test_error"]].itertuples(index=False, name=None))
    assert rows == {(0.9, 0, 26.0), (0.5, 0, 27.0)}  # seed 1 has one γ0 only
    theirs = data[data["whose"] == "the paper's"].set_index("gamma0")
    assert theirs["test_error"].to_dict() == {
        g: PAPER["error_mean"]["t1a", "cifar100", "cnn13", f"gamma0-{g}"]
        for g in (0.5, 0.8, 0.9, 0.95, 0.99)
    }
    assert theirs["deviation"][0.9] == 0.08
    points = picture.axes[0].get_lines()[0].get_xydata()
    assert points[:, 0] == pytest.approx([0.5, 0.1])
    assert points[:, 1] == pytest.approx([27.0, 26.0])


def test_errors_at_phase_ends_match_the_records(study: Study) -> None:
    _, data = phases.draw(study)
    found = {
        (row.column, row.weights, row.seed, row.phase): row.test_error
        for row in data[data["table"].isin(["t1a", "t1d"])].itertuples(index=False)
    }
    expected: dict[tuple[str, str, int, int], float] = {}
    for column in ("gamma0-0.9", "gamma0-0.5", "learnt"):
        for seed, error in ERRORS["t1a", column].items():
            for phase, more in ((1, 20), (2, 10), (3, 0)):
                expected[column, phases.AVERAGED, seed, phase] = error + more
    expected["cosine", phases.TRAINED, 0, 1] = 24.0
    expected["cosine", phases.PASSED, 0, 1] = 23.5
    assert found == expected
    sgd = data[(data["table"] == "t1b") & (data["column"] == "80-40-40-sgd")]
    by_weights = {w: lines["test_error"].tolist() for w, lines in sgd.groupby("weights")}
    assert by_weights[phases.TRAINED] == [48, 38, 28, 49, 39, 29]
    assert by_weights[phases.PASSED] == [47.5, 37.5, 27.5, 48.5, 38.5, 28.5]


def test_each_network_with_runs_has_a_figure(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = next(iter(study.runs.values())).settings
    places = (f"runs_dir={settings.runs_dir}", f"records_dir={settings.records_dir}")
    inputs = Inputs(["model=cnn13", *places])
    assert [drawn for drawn, _ in FIGURES["fig5"].drawings("fig5", inputs)] == [
        "fig5-cifar100-cnn13"
    ]
    assert "cells have runs; run python train.py -m table=t1a" in capsys.readouterr().out
    with pytest.raises(UserError, match="gamma0: no numbers to draw yet"):  # of a single γ0
        computed("gamma0", "model=cnn13", "column=gamma0-0.9", *places)


def test_changed_settings_do_not_replace_published_figures(tmp_path: Path) -> None:
    changed = ("model=cnn13", "batch_size=64", f"runs_dir={tmp_path}", f"records_dir={tmp_path}")
    with pytest.raises(UserError, match=r"batch_size=64: changes the results; .* --output"):
        computed("phases", *changed)


def test_without_records_the_command_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no numbers to draw yet; run python train\.py -m table=t1a"
    ):
        computed(
            "fig5", "table=t2", "model=cnn13", f"runs_dir={tmp_path}", f"records_dir={tmp_path}"
        )


def test_the_same_numbers_give_the_same_files(study: Study, tmp_path: Path) -> None:
    for module in (fig5, gamma0, phases):
        first, again = (write("a", module.draw(study), tmp_path / place) for place in ("a", "b"))
        assert len(first) == 3
        for one, other in zip(first, again, strict=True):
            assert one.read_bytes() == other.read_bytes()
