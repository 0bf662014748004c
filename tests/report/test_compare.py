"""Comparison of groups of runs: settings, errors and curves, with made records."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TINY, Compose, Prompt
from made_records import make_record, metrics_line

from phaseavg.config import Settings
from phaseavg.report.compare import (
    differing_settings,
    figure,
    list_groups,
    phase_end_errors,
    read_groups,
    summarise,
)


def history(error: float) -> list[dict[str, Any]]:
    """Return metrics of phases with 2, 2 and 1 epochs and averages that are 1 % better."""
    lines = []
    for epoch in range(1, 6):
        now = error + 5 - epoch + 1
        end = epoch in (2, 4, 5)
        tests = (now, now - 0.5, now - 1) if end else (now,)
        others = {"phase": (epoch + 1) // 2, **({"replaced": True} if end else {})}
        lines.append(metrics_line(epoch, *tests, **others))
    return lines


def leave(settings: Settings, error: float, **execution: Any) -> Path:
    """Write the record of a run; return its folder."""
    return make_record(settings, error, metrics=history(error), **execution)


def read(*arguments: str | Path) -> tuple[pd.DataFrame, ...]:
    return read_groups([str(word) for word in arguments])


def test_runs_that_differ_only_in_their_seed_form_a_group(
    compose_settings: Compose, tmp_path: Path
) -> None:
    for seed, error in enumerate((20.0, 21.0, 22.0)):
        leave(compose_settings(*TINY, f"seed={seed}"), error)
    other = (*TINY, "averaging.weights.gamma0=0.5", f"runs_dir={tmp_path}/others")
    for seed, error in enumerate((21.0, 23.0)):
        leave(compose_settings(*other, f"seed={seed}"), error)
    make_record(compose_settings(*other, "seed=2"), None, metrics=[])
    runs, metrics = read(tmp_path / "runs", tmp_path / "others")
    counts = list_groups(runs)[["", "finished", "diverged"]].values.tolist()
    assert counts == [["a", 3, 0], ["b", 2, 1]]
    (setting,) = differing_settings(runs).to_dict("records")
    assert setting == {"setting": "averaging.weights.gamma0", "a": "0.9", "b": "0.5"}
    a, b = summarise(runs).to_dict("records")
    assert (a["n"], a["last"], a["last − a"]) == (3, "21.00 ± 1.00", "")
    assert (b["n"], b["last"]) == (2, "22.00 ± 1.41")
    # Differences 1 and 2; t = 12.706 for one degree of freedom, standard error 0.5.
    assert b["last − a"] == "+1.50 [−4.85, +7.85] (2)"
    ends = phase_end_errors(metrics)
    assert list(ends["epoch"]) == [2, 4, 5] * 2
    assert list(ends["n"]) == [3, 3, 3, 2, 2, 2]
    first = ends.iloc[0][["as trained", "after a BN pass", "average"]]
    assert first.tolist() == ["25.00 ± 1.00", "24.50 ± 1.00", "24.00 ± 1.00"]
    assert ends.iloc[0]["average − BN pass"] == "−0.50 [−0.50, −0.50]"
    # b's average compared with a's weights before a BN pass: 24 and 26 minus 24 and 25.
    assert ends.iloc[3]["− a"] == "+0.50 [−5.85, +6.85]"


def test_runs_with_different_executions_are_not_paired(compose_settings: Compose) -> None:
    folders = [
        leave(compose_settings(*TINY), 20.0),
        leave(compose_settings(*TINY, "averaging=end"), 22.0, threads=2),
        leave(compose_settings(*TINY, "averaging=end", "seed=1", "optimizer.lr=0.2"), 22.0),
    ]
    runs, _ = read(*folders)
    assert list(runs["letter"]) == ["a", "b", "c"]
    assert list(summarise(runs)["last − a"]) == [""] * 3
    settings = differing_settings(runs).set_index("setting")
    assert settings.loc["execution", "b"].startswith("a GPU, AVX2, 2 threads, fp32")
    assert settings.loc["averaging.window"].tolist() == ["", "training", "training"]
    assert "seed" not in settings.index


def test_a_run_repeated_in_another_precision_is_a_group_of_its_own(
    compose_settings: Compose, tmp_path: Path
) -> None:
    for seed, error in enumerate((20.0, 21.0, 22.0)):
        leave(compose_settings(*TINY, f"seed={seed}"), error)
    for seed, error in enumerate((30.0, 32.0)):
        again = compose_settings(*TINY, f"seed={seed}", f"runs_dir={tmp_path}/again")
        leave(again, error, precision="bf16")
    runs, metrics = read(tmp_path / "again", tmp_path / "runs", tmp_path / "runs")
    summary = summarise(runs)
    assert summary["last"].tolist() == ["31.00 ± 1.41", "21.00 ± 1.00"]
    assert summary["last − a"].tolist() == ["", ""]
    assert [", bf16," in label for label in list_groups(runs)["runs"]] == [True, False]
    assert phase_end_errors(metrics)["n"].tolist() == [2, 2, 2, 3, 3, 3]


def test_integers_are_shown_as_integers_and_an_empty_folder_is_reported(
    compose_settings: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(compose_settings(*TINY), 20.0)
    other = compose_settings(*TINY, "optimizer=lookahead", f"runs_dir={tmp_path}/others")
    make_record(other, None, metrics=[])
    (tmp_path / "empty").mkdir()
    runs, metrics = read(tmp_path / "empty", tmp_path / "others", tmp_path / "runs")
    assert capsys.readouterr().err == f"{tmp_path}/empty: no run has ended; left out\n"
    read(tmp_path / "runs", "table=t1d", f"records_dir={tmp_path}")
    message = f"table=t1d records_dir={tmp_path}: no run has ended; left out\n"
    assert capsys.readouterr().err == message
    settings = differing_settings(runs).set_index("setting")
    assert settings.loc["optimizer.k"].tolist() == ["5", ""]
    assert "test_error" not in settings.index
    assert phase_end_errors(metrics)["epoch"].map(str).tolist() == ["2", "4", "5"]


def test_a_cell_contains_all_its_seeds(compose_settings: Compose, tmp_path: Path) -> None:
    errors = {"averaging=rna": (21.0, 23.0), "averaging.weights.gamma0=0.9": (20.0, 21.0, 22.0)}
    for override, values in errors.items():
        for seed, error in enumerate(values):
            inputs = ("averaging=phasewise", override, f"seed={seed}")
            leave(compose_settings("scale=digits", "model=cnn13", *inputs), error)
    chosen = ["table=t1a", "model=cnn13", "column=gamma0-0.9,learnt", "scale=digits"]
    folders = [f"runs_dir={tmp_path}/runs", f"records_dir={tmp_path}/records"]
    runs, metrics = read(*chosen, *folders)
    names = ["t1a cifar100 cnn13 gamma0-0.9", "t1a cifar100 cnn13 learnt"]
    assert list_groups(runs)["runs"].tolist() == names  # in the table's order
    assert summarise(runs)["n"].tolist() == [3, 2]
    assert phase_end_errors(metrics)[""].tolist() == ["a"] * 3 + ["b"] * 3


def test_a_cell_without_runs_of_its_own_is_not_compared(
    compose_settings: Compose, tmp_path: Path
) -> None:
    """A table shows the SGD of this cell by the averaged run's weights before averaging."""
    run = ("scale=digits", "model=cnn13", "schedule=constant-80", "averaging=phasewise")
    metrics = [metrics_line(epoch) for epoch in range(1, 9)]
    metrics[-1] = metrics_line(8, 30.0, 25.0, 20.0, replaced=True)
    make_record(compose_settings(*run), 20.0, metrics=metrics)
    cells = ["table=t3", "model=cnn13", "dataset=cifar100", "column=sgd-orig,sgd-ours"]
    places = [f"runs_dir={tmp_path}/runs", f"records_dir={tmp_path}/records"]
    runs, _ = read(*cells, "scale=digits", *places)
    assert list_groups(runs)["runs"].tolist() == ["t3 cifar100 cnn13 sgd-ours"]


def test_curves_show_the_metrics_and_their_mean(compose_settings: Compose, tmp_path: Path) -> None:
    for seed, error in enumerate((20.0, 21.0, 22.0)):
        leave(compose_settings(*TINY, f"seed={seed}"), error)
    above, below = figure(*read(tmp_path / "runs")).axes
    *seeds, mean, after, average, _, _ = above.get_lines()
    drawn = sorted(list(curve.get_ydata()) for curve in seeds)
    assert drawn == [[error + 5 - epoch for epoch in range(5)] for error in (20.0, 21.0, 22.0)]
    assert list(mean.get_ydata()) == [26.0, 25.0, 24.0, 23.0, 22.0]
    assert list(after.get_xdata()) == list(average.get_xdata()) == [2, 4, 5]
    assert list(after.get_ydata()) == [24.5, 22.5, 21.5]
    assert list(average.get_ydata()) == [24.0, 22.0, 21.0]
    assert list(below.get_lines()[0].get_ydata()) == [1 / epoch for epoch in range(1, 6)]


def test_an_error_of_zero_is_drawn_on_a_linear_axis(compose_settings: Compose) -> None:
    for seed, (lowest, scale) in enumerate(((0.0, "linear"), (0.1, "log"))):
        settings = compose_settings(*TINY, f"seed={seed}")
        metrics = [metrics_line(1, 50.0), metrics_line(2, lowest, lowest, replaced=False)]
        folder = make_record(settings, lowest, metrics=metrics)
        above, _ = figure(*read(folder)).axes
        assert above.get_yscale() == scale


def test_runs_that_diverged_in_their_first_epoch_have_a_figure_without_curves(
    compose_settings: Compose, tmp_path: Path
) -> None:
    make_record(compose_settings(*TINY), None, metrics=[])
    above, _ = figure(*read(tmp_path / "runs")).axes
    assert not any(len(line.get_xdata()) for line in above.get_lines())


def test_the_script_prints_tables_and_writes_a_figure(
    compose_settings: Compose, script: Prompt, tmp_path: Path
) -> None:
    for width in (0.03, 0.04):
        leave(compose_settings(*TINY, f"model.width={width}"), 20.0)
    output = tmp_path / "new" / "errors"
    status, out, _ = script("compare", tmp_path / "runs", "--output", output)
    assert status == 0
    assert "| model.width" in out
    names = {path.name for path in output.parent.iterdir()}
    assert names == {"errors.md", "errors.png", "errors.svg"}
    assert out.startswith((output.parent / "errors.md").read_text())
