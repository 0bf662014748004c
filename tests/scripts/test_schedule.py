"""Drawing schedules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from phaseavg.report.figures.schedules import figure, schedules
from scripts import schedule as script


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["schedule.py", *arguments])
    return script.main()


def test_the_rates_are_those_of_the_steps() -> None:
    curves = ["schedule=constant-80 optimizer=adam", "schedule=60-30-30 optimizer=lookahead"]
    found = schedules(curves, 2, script.CONF).groupby("curve")
    adam, lookahead = (found.get_group(curve) for curve in curves)
    assert list(adam["learning_rate"]) == 160 * [1e-3]
    assert list(adam["epoch"][:3]) == [0, 0.5, 1]
    assert list(lookahead["learning_rate"]) == pytest.approx(
        120 * [0.1] + 60 * [0.01] + 60 * [0.001]
    )


def test_a_notebooks_backend_is_not_needed(tmp_path: Path) -> None:
    """Which a shell inherits that was started from one; so for every script that draws."""
    done = subprocess.run(
        [
            sys.executable,
            "scripts/schedule.py",
            "schedule=constant-80",
            f"--output={tmp_path}/a.png",
        ],
        cwd=REPOSITORY,
        env={**os.environ, "MPLBACKEND": "module://no_such.backend"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_picture_has_a_curve_for_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = [
        "schedule=80-40-40",
        "schedule=constant-80",
        "schedule=cosine schedule.shape.per=step",
    ]
    output = tmp_path / "schedules.svg"
    assert typed(monkeypatch, *curves, "--steps", "2", "--output", str(output)) == 0
    assert capsys.readouterr().out == f"{output}: 3 curves\n"
    assert output.read_text().count('id="line2d_') >= 3
    (axes,) = figure(schedules(curves, 2, script.CONF)).axes
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == curves
    # The last rate is drawn until the end.
    assert [len(line.get_xdata()) for line in axes.get_lines()] == [321, 161, 321]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["schedule=polynomial"], "schedule=polynomial: there is no such option; choices: 100-50"),
        (["schedule=cosine schedule.shape.per=hour"], "schedule.shape.per='hour'; choices: "),
        (["schedule=constant-80", "--steps", "0"], "--steps=0: must be positive"),
        (
            ["schedule=constant-80", "--steps", "10000000000"],
            "--steps=10000000000: makes 800,000,000,0",
        ),
        (["schedule=constant-80", "--output", "/dev/null/x.png"], "--output=/dev/null/x.png: "),
        (
            ["schedule=constant-80", "--output", "x.txt"],
            "--output=x.txt: Format 'txt' is not supported",
        ),
    ],
)
def test_mistakes_get_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    assert typed(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"schedule.py: {told}")
    assert err.count("\n") == 1
