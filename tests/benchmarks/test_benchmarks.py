"""The benchmarks measure what they say, on networks too thin for their numbers to mean much."""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra

from benchmarks import averaging, common, optimizers, sharing, startup
from phaseavg.errors import UserError

THIN = ("--width", "0.04", "--rounds", "2")
FEW_EPOCHS = (*THIN, "--batch-size", "2", "--epochs", "5", "--models")

pytestmark = pytest.mark.filterwarnings("ignore:This overload of")  # of adabound

Run = Callable[..., str]


@pytest.fixture
def report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Return a function that runs a benchmark and returns its report, printed and written alike."""

    def run(benchmark: ModuleType, *arguments: str) -> str:
        GlobalHydra.instance().clear()
        output = tmp_path / "results" / "report.md"
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--output", str(output)])
        assert benchmark.main() == 0
        written = output.read_text()
        assert capsys.readouterr().out == written
        assert str(tmp_path) not in written
        return written

    return run


def tables(text: str) -> list[pd.DataFrame]:
    found = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = [[c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines()]
            found.append(pd.DataFrame(lines[2:], columns=lines[0]))
    return found


def require_numbers(table: pd.DataFrame, words: set[str]) -> None:
    """All columns but `words` hold medians and quantiles: finite, positive, in order."""
    for column in table.columns.difference(list(words)):
        for cell in table[column]:
            numbers = re.fullmatch(r"(\S+) \((\S+)–(\S+)\)", cell)
            assert numbers is not None, cell
            median, low, high = map(float, numbers.groups())
            assert 0 < low <= median <= high < float("inf")


def test_averaging_has_a_row_for_every_network_and_leaves_no_files(
    report: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    text = report(averaging, *FEW_EPOCHS, *averaging.NETWORKS)
    training, rows = tables(text)
    assert tuple(training["network"]) == averaging.NETWORKS
    assert set(training["rounds"]) == {"2"}
    require_numbers(training, {"network", "parameters", "rounds"})
    assert list(zip(rows["network"], rows["weights"], strict=True)) == [
        ("cnn13", "exponential"),
        ("cnn13", "learnt, files"),
        ("cnn13", "learnt, memory"),
        *((network, "exponential") for network in averaging.NETWORKS[1:]),
    ]
    goal = rows.columns[-1]
    require_numbers(rows, {"network", "weights", goal})
    assert f"that is so in {(rows[goal] == 'met').sum()} of {len(rows)} rows" in text
    assert list(scratch.iterdir()) == []


def test_learnt_weights_are_left_out_where_there_is_no_room(
    report: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "storage_of", lambda *_: 1e9)
    text = report(averaging, *FEW_EPOCHS, "cnn13")
    assert list(tables(text)[1]["weights"]) == ["exponential"]
    for store in ("files", "memory"):
        assert f"cnn13, learnt weights, {store}: not measured" in text


def test_the_goal_is_judged_by_the_dearest_epoch_of_the_dearest_round() -> None:
    def judged(observe: list[float], end: list[float], last: list[float] | None = None) -> str:
        seconds = {"step": [1.0, 1.0], "kind: observe": observe, "kind: end": end}
        if last is not None:
            seconds["kind: last observe"] = last
        (row,) = averaging.averaging_rows("net", pd.DataFrame(seconds), steps=100, epochs=10)
        return list(row.values())[-1]

    assert judged([0.3, 0.3], [0.1, 0.1]) == "met"  # 0.4 % of 100 s
    assert judged([0.3, 0.3], [0.3, 0.3]) == "missed"
    assert judged([0.3, 0.4], [0.1, 0.1]) == "missed"  # 0.5 % in one round
    assert judged([0.3, 0.3], [0.1, 0.1], last=[0.6, 0.6]) == "missed"
    assert judged([0.6, 0.6], [0.1, 0.1], last=[0.3, 0.3]) == "met"


def test_shares_of_an_epoch_and_of_a_phase_by_hand() -> None:
    seconds = pd.DataFrame(
        {"step": [0.5], "BatchNorm batch": [0.2], "kind: observe": [0.1], "kind: end": [0.4]}
    )
    training = averaging.training_row("net", seconds, epochs=10, weights=7)
    (row,) = averaging.averaging_rows("net", seconds, steps=100, epochs=10)
    medians = [float(cell.split()[0]) for cell in list(training.values())[3:]]
    assert medians == [40, 4]
    medians = [float(cell.split()[0]) for cell in list(row.values())[2:-1]]
    assert medians == [0.2, 0.8, 1.0, 0.28]  # of an epoch of 50 s


def test_optimizers_has_a_row_for_every_pair(report: Run) -> None:
    (rows,) = tables(report(optimizers, *THIN, "--model", "cnn13"))
    same = rows[rows["same weights"] == "yes"]
    assert dict(zip(same["optimizer"], same["beside"], strict=True)) == optimizers.SAME_WORK
    assert len(rows) == len(optimizers.SAME_WORK) + len(optimizers.OTHER_WORK)
    require_numbers(rows, {"optimizer", "beside", "same weights"})


def test_no_time_is_taken_of_optimizers_that_do_other_work(
    report: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"Lookahead(SGD)": lambda p: optimizers.Lookahead(optimizers.sgd(p), k=6)}
    monkeypatch.setattr(optimizers, "OPTIMIZERS", optimizers.OPTIMIZERS | other)
    with pytest.raises(AssertionError, match="not close"):
        report(optimizers, *THIN, "--model", "cnn13")


def test_rounds_end_with_their_number_or_with_the_time_but_not_before_the_second() -> None:
    assert len(common.repeated(lambda number: {"a": number}, rounds=3, seconds=60)) == 3
    assert len(common.repeated(lambda number: {"a": number}, rounds=9, seconds=0)) == 2


def test_sharing_is_measured_beside_its_absence(report: Run) -> None:
    """By hand: 1c has 8 epochs of SGD in common, and `end` trains none of its own."""
    overrides = ("--overrides", "model.width=0.03", "evaluation.every=0", "batch_size=500")
    text = report(sharing, "--tables", "1c", "--rounds", "1", "--threads", "1", *overrides)
    (table,) = tables(text)
    assert list(table[""]) == list(sharing.WAYS)
    assert list(table["epochs trained"]) == ["64", "64", "40"]
    require_numbers(table, {"", "epochs trained"})
    assert re.search(r"Goal: at most 0\.6 of one by one; (not )?met\.", text)


def test_starting_is_told_beyond_the_import_of_torch(
    report: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: the second process works for a fifth of a second before it tells."""
    work = "while time.process_time() < began + 0.2: pass"
    made = {
        startup.TORCH: ["-c", startup.TELL + "tell()"],
        startup.DIGITS: ["-c", f"{startup.TELL}began = time.process_time()\n{work}\ntell()"],
    }
    monkeypatch.setattr(startup, "processes", lambda *_: made)
    text = report(startup, "--rounds", "2", "--threads", "1")
    (table,) = tables(text)
    assert list(table[""]) == [startup.TORCH, startup.DIGITS]
    require_numbers(table.iloc[1:], {""})
    beyond = float(table["processor, beyond import torch"][1].split()[0])
    assert 0.1 < beyond < 1
    assert "on the digits; met." in text


def test_starting_ends_with_the_first_step(tmp_path: Path) -> None:
    given = argparse.Namespace(width=0.04, device="cpu", data_dir=None)
    digits = startup.processes(given, str(tmp_path))[startup.DIGITS]
    seconds, processor = startup.started(digits, threads=1)
    assert seconds > 0
    assert processor > 0.5  # torch alone takes more
    (folder,) = tmp_path.glob("digits-*")
    assert not (folder / "result.json").exists()
    with pytest.raises(UserError, match="there is no such option"):
        startup.started([*digits, "model=none"], threads=1)
