"""The demo's table by hand-checked numbers, and its figure's data."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, TINY

import train
from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.report.demo import AVERAGE, BN, SGD, figure, phase_ends, summary_table, write_demo
from scripts import demo as script
from scripts.records import keep_records


def line(averaging: str, seed: int, epoch: int, **values: float) -> dict:
    return {
        **{"averaging": averaging, "seed": seed, "epoch": epoch, "phase": 1},
        **{"learning_rate": 0.1, "replaced": None},
        **{f"{name}.error": value for name, value in values.items() if name != "replaced"},
        **({"replaced": values["replaced"]} if "replaced" in values else {}),
    }


METRICS = pd.DataFrame(
    [
        line("noaveraging", 0, 1, weights=50.0),
        line("noaveraging", 0, 2, weights=10.0, bn=8.0, replaced=False),
        line("noaveraging", 1, 2, weights=12.0, bn=9.0, replaced=False),
        line("phasewise", 0, 1, weights=50.0, average=49.0),
        line("phasewise", 0, 2, weights=10.0, average=4.0, replaced=True),
        line("phasewise", 1, 2, weights=12.0, average=7.0, replaced=True),
        # A seed of one method alone has no pair and is left out.
        line("phasewise", 2, 2, weights=11.0, average=1.0, replaced=True),
    ]
)


def test_means_deviations_and_paired_differences() -> None:
    (row,) = summary_table(phase_ends(METRICS)).to_dict("records")
    assert row["end of"] == "phase 1 (epoch 2)"
    assert row["n"] == 2
    assert row[SGD] == "11.00 ± 1.41"
    assert row[BN] == "8.50 ± 0.71"
    assert row[AVERAGE] == "5.50 ± 2.12"
    assert row["average − SGD"] == "-5.50 ± 0.71"
    assert row["average − (SGD + BN pass)"] == "-3.00 ± 1.41"
    assert row["BN pass alone"] == "-2.50 ± 0.71"


def test_a_single_seed_has_no_deviation() -> None:
    (row,) = summary_table(phase_ends(METRICS[METRICS["seed"] == 0])).to_dict("records")
    assert (row["n"], row[AVERAGE]) == (1, "4.00")


def test_the_figure_draws_every_seed_and_the_mean() -> None:
    axes = figure(METRICS).axes[0]
    drawn = [tuple(curve.get_ydata()) for curve in axes.get_lines()]
    assert (50.0, 10.0) in drawn  # seed 0 of SGD
    assert (50.0, 11.0) in drawn  # mean of SGD
    assert (49.0, 4.0) in drawn
    assert (49.0, pytest.approx(4.0)) in drawn


def test_from_runs_to_files(
    compose_settings: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for seed in (0, 1):
        for averaging in ("none", "phasewise"):
            results = train.run(
                compose_settings(
                    *TINY, f"averaging={averaging}", f"seed={seed}", "evaluation.average_every=1"
                )
            )
    output = tmp_path / "new" / "demo"
    table = write_demo(tmp_path / "runs", output)
    assert table == (output / "table.md").read_text()
    assert table.count("phase ") >= 3
    runs = pd.read_csv(output / "runs.csv")
    assert len(runs) == 4
    assert results["run_id"] in set(runs["run_id"])
    assert (output / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(output / "phase_ends.csv")) == 6
    files = {"table.md", "phase_ends.csv", "runs.csv", "errors.png", "errors.svg"}
    assert {path.name for path in output.iterdir()} == files
    # From kept records all is made again, and beside the runs themselves.
    keep_records(tmp_path / "runs", tmp_path / "records")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["demo.py", "runs"])
    for source in ("records", "runs", "runs"):
        assert write_demo(tmp_path / source, tmp_path / source) == table
    capsys.readouterr()
    assert script.main() == 0
    assert capsys.readouterr().out.endswith("Table: runs/table.md\nPicture: runs/errors.png\n")


def test_make_demo_writes_nothing_that_is_committed() -> None:
    make = ["make", "--dry-run", "--assume-old=.venv/installed"]
    shown = {
        target: subprocess.check_output([*make, target], cwd=REPOSITORY, text=True)
        for target in ("demo", "demo-results")
    }
    assert "runs/demo" in shown["demo"]
    assert "results" not in shown["demo"]
    assert "results/demo" in shown["demo-results"]


def test_the_table_that_is_committed_is_that_of_its_records(tmp_path: Path) -> None:
    committed = REPOSITORY / "results/demo"
    assert write_demo(committed / "records", tmp_path) == (committed / "table.md").read_text()


def test_runs_with_other_settings_are_not_mixed_in(
    compose_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    for override in ("seed=0", "batch_size=64"):
        train.run(compose_settings(*TINY, "schedule.epochs=[1,1,1]", "seed=1", override))
    with pytest.raises(UserError, match="differ in batch_size"):
        write_demo(tmp_path / "runs", tmp_path)
