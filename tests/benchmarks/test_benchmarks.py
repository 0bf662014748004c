"""The benchmarks measure what they say, on networks too thin for their numbers to mean much."""

import argparse
import json
import logging
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from benchmarks import (
    averaging,
    common,
    epochs,
    images,
    loops,
    optimizers,
    sharing,
    startup,
    training,
)
from benchmarks import input as batches
from benchmarks.page import section
from phaseavg.data import ResidentImages
from phaseavg.errors import UserError

THIN = ("--width", "0.04", "--rounds", "2")
FEW_EPOCHS = (*THIN, "--batch-size", "2", "--epochs", "5", "--scale", "0.001", "--models")

pytestmark = pytest.mark.filterwarnings("ignore:This overload of")  # of adabound

Record = dict[str, Any]
Run = Callable[..., Record]


@pytest.fixture
def report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Return a function that runs a benchmark and returns its record, which it prints as well."""

    def run(benchmark: ModuleType, *arguments: str) -> Record:
        GlobalHydra.instance().clear()
        output = tmp_path / "results" / "record.json"
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--output", str(output)])
        assert benchmark.main() == 0
        written = output.read_text()
        assert str(tmp_path) not in written
        record = json.loads(written)
        assert capsys.readouterr().out == section(record) + "\n"
        return record

    return run


def tables(record: Record) -> list[pd.DataFrame]:
    return [pd.DataFrame(table["rows"]) for table in record["tables"]]


def require_numbers(table: pd.DataFrame, words: set[str]) -> None:
    """All columns but `words` hold medians and quantiles: finite, positive, in order."""
    for column in table.columns.difference(list(words)):
        for cell in table[column]:
            numbers = re.fullmatch(r"(\S+) \((\S+)–(\S+)\)", cell)
            assert numbers is not None, cell
            median, low, high = map(float, numbers.groups())
            assert 0 < low <= median <= high < float("inf")


def test_averaging_has_a_row_for_every_network_and_size_and_leaves_no_files(
    report: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    record = report(averaging, *FEW_EPOCHS, *averaging.NETWORKS)
    rows, peers = tables(record)
    assert list(zip(rows["network"], rows["weights"], strict=True)) == [
        ("cnn13", "exponential"),
        ("cnn13", "RNA"),
        *((network, "exponential") for network in averaging.NETWORKS[1:]),
    ]
    require_numbers(rows, {"network", "weights", "parameters"})
    assert tuple(peers["parameters"]) == tuple(averaging.SIZES)
    require_numbers(peers, {"parameters"})
    packages = averaging.installed()
    named = [name for name, (package, _) in averaging.PEERS.items() if package in packages]
    assert named[:2] == ["torch AveragedModel", "timm ModelEmaV3"]
    assert [outcome["beside"] for outcome in record["goals"][1:]] == named
    assert list(scratch.iterdir()) == []


def test_no_time_is_taken_of_averages_that_differ(
    report: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(model: torch.nn.Module, decay: float) -> Any:
        return ema(model, decay=0.99 * decay)

    ema = averaging.ModelEmaV3
    monkeypatch.setattr(averaging, "ModelEmaV3", other)
    with pytest.raises(AssertionError, match="not close"):
        report(averaging, *FEW_EPOCHS, "cnn13")


def test_the_goal_is_judged_by_the_dearest_epoch_of_the_dearest_round() -> None:
    def judged(end: list[float], rna: list[float]) -> tuple[bool | None, str]:
        seconds = pd.DataFrame(
            {
                "step": [1.0, 1.0],
                "exponential, at a phase's end": end,
                "RNA, at a phase's end": rna,
            }
        )
        goal = averaging.goals_of({"net": seconds}, {}, steps=100)[0]
        return goal.met, goal.what

    assert judged([0.4, 0.4], [0.1, 0.1])[0] is True  # 0.4 % of 100 s
    assert judged([0.4, 0.5], [0.1, 0.1])[0] is False  # 0.5 % in one round
    met, what = judged([0.1, 0.1], [0.6, 0.6])
    assert met is False
    assert "(net, RNA)" in what


def test_shares_of_an_epoch_by_hand() -> None:
    seconds = {"step": [0.5], "BatchNorm batch": [0.2], "exponential": [0.1]}
    frame = pd.DataFrame({**seconds, "exponential, at a phase's end": [0.4]})
    (row,) = averaging.training_rows("net", frame, steps=100)
    medians = [float(cell.split()[0]) for cell in list(row.values())[2:]]
    assert medians == [0.2, 0.8, 40]  # of an epoch of 50 s


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
    """By hand: of 3 times 4 epochs 2 of SGD are in common, and `end` trains none of its own."""
    short = ("column=no,at-the-end,phase-wise", "schedule.divisor=40", "batch_size=500")
    overrides = ("--overrides", "model.width=0.03", "evaluation.every=0", *short)
    record = report(sharing, "--tables", "t1c", "--rounds", "1", "--threads", "1", *overrides)
    (table,) = tables(record)
    assert list(table[""]) == list(sharing.WAYS)
    assert list(table["epochs trained"]) == ["12", "12", "6"]
    require_numbers(table, {"", "epochs trained"})
    (goal,) = record["goals"]
    assert goal["met"] == (float(goal["measured"].split()[0]) <= 0.6)


def test_input_is_measured_beside_torchvision(report: Run) -> None:
    record = report(batches, "--images", "200", "--rounds", "2", "--threads", "1")
    (table,) = tables(record)
    assert list(table["an epoch of batches"]) == ["ours", *map(batches.peer, batches.WORKERS)]
    require_numbers(table[1:], {"an epoch of batches"})
    seconds = pd.DataFrame(record["rounds"]["epoch"])
    ratio = seconds["torchvision, 0 workers"] / seconds["ours"]
    assert common.cell(ratio) == table["ours, times as fast"][1]
    assert [goal["met"] for goal in record["goals"]] == [ratio.min() >= batches.GOAL, None]


@pytest.mark.parametrize("spoil", ["images", "labels"])
def test_no_time_is_taken_of_other_images(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = images.noise(1)
    batches.require_same(pixels[:8], labels[:8])

    def other(train: tuple[np.ndarray, np.ndarray], *arguments: Any, **options: Any) -> Any:
        x, y = train
        spoilt = (x.swapaxes(2, 3), y) if spoil == "images" else (x, y[::-1].copy())
        return ResidentImages(spoilt, *arguments, **options)

    monkeypatch.setattr(batches, "ResidentImages", other)
    with pytest.raises(AssertionError):
        batches.require_same(pixels[:8], labels[:8])


def test_runs_and_peers_get_the_same_images() -> None:
    pixels, labels = images.training_images(None, 300)
    settings = common.settings_of("cnn13", 1.0, *images.overrides_of(None, 300))
    data = training.load_data(settings, common.CPU)
    assert (data.train_size, data.test_size, data.padding, data.flip) == (300, 100, 4, True)
    assert data.train_labels.tolist() == labels
    frames = data._windows.as_strided((300, 3, 40, 40), (3 * 40 * 40, 40 * 40, 40, 1))
    ours = frames[:, :, 4:36, 4:36].permute(0, 2, 3, 1).numpy()
    assert (ours == pixels).all()
    image, label = images.Pictures(pixels, labels)[7]
    assert (np.asarray(image) == pixels[7]).all() and label == labels[7]


FEW_IMAGES = ("--images", "100", "--batch-size", "50", "--rounds", "2", "--threads", "1")
ONE_THIN = (*FEW_IMAGES, "--models", "cnn13", "--widths", "0.0625")

TIMM_SCRIPT = """
import argparse, logging, sys
from timm.models import create_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

def create_dataset(*_, **__):
    raise AssertionError("reads images of its own")

def create_loader(dataset, batch_size, persistent_workers=True):
    dataset.transform = ToTensor()
    return DataLoader(dataset, batch_size, persistent_workers=persistent_workers)

def train_one_epoch(model, loader):
    sizes = []
    for images, labels in loader:
        cross_entropy(model(images), labels).backward()
        sizes.append(len(labels))
    assert sizes == [50, 50]

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--batch-size", type=int)
    given, _ = parser.parse_known_args()
    print("chatter")
    logging.basicConfig(stream=sys.stderr, level=0, force=True)
    model = create_model(given.model, num_classes=100)
    train_one_epoch(model, create_loader(create_dataset(), given.batch_size))
"""


def test_training_is_measured_beside_timm_and_torchvision(report: Run, tmp_path: Path) -> None:
    """All numbers of the page are those of the rounds."""
    (tmp_path / "train.py").write_text(TIMM_SCRIPT)
    path, handlers = list(sys.path), list(logging.root.handlers)
    record = report(training, *ONE_THIN, "--timm", str(tmp_path))
    assert (sys.path, logging.root.handlers) == (path, handlers)
    assert "timm" in record["machine"]["versions"]
    epoch, step = tables(record)
    require_numbers(epoch, {"network", "width", "rounds"})
    require_numbers(step, {"network", "width", "rounds"})
    seconds = pd.DataFrame(record["rounds"]["cnn13, 0.0625: epoch"])
    ways = list(training.OURS.values())
    ended = [f"{way}, with its end" for way in ways]
    assert list(seconds) == [*ways, *ended, "torchvision", "timm"]
    for number, way in enumerate(ways):
        assert (seconds[ended[number]] > seconds[way]).all()
        ratio = seconds["timm"] / seconds[way]
        assert epoch[f"{way}, times as fast as timm"][0] == common.cell(ratio)
        goal = record["goals"][3 * number]
        assert goal["measured"] == f"{common.cell(ratio)} times as fast"
        assert goal["met"] == (ratio.min() >= 1)


def test_timm_is_left_out_without_a_checkout(report: Run) -> None:
    record = report(training, *ONE_THIN, "--overrides", "averaging=none")
    beside_timm = [goal for goal in record["goals"] if "timm" in goal["beside"]]
    assert {(goal["measured"], goal["met"]) for goal in beside_timm} == {
        ("skipped: no --timm", None)
    }
    assert len(beside_timm) == 2
    others = [goal for goal in record["goals"] if goal not in beside_timm]
    assert all(goal["met"] in (True, False) for goal in others)
    assert "with averaging=none" in record["how"]


def script_of(main: Callable[[], None], train_one_epoch: Callable[..., None]) -> ModuleType:
    script = ModuleType("script")
    script.main, script.train_one_epoch = main, train_one_epoch
    script.create_dataset = script.create_loader = lambda: None
    return script


def test_of_timm_the_epoch_is_timed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    def work(seconds: int) -> None:
        nonlocal now
        now += seconds

    def main() -> None:
        work(20)
        script.train_one_epoch(2)

    script = script_of(main, work)
    monkeypatch.setattr(loops, "processor_seconds", lambda: now)
    assert training.timm_epoch(script, "net", images.noise(1), 50) == 2


def test_options_that_timm_refuses_are_told() -> None:
    def main() -> None:
        print("usage: …\nerror: no such option", file=sys.stderr)
        sys.exit(2)

    script = script_of(main, print)
    with pytest.raises(UserError, match="ends with 'error: no such option'"):
        training.timm_epoch(script, "net", images.noise(1), 50)


def test_the_goals_of_training_are_judged_by_the_slowest_round() -> None:
    def judged(name: str, width: float, timms: list[float]) -> tuple[str, bool | None]:
        peers = {"torchvision": [2.0, 2.0], "timm": timms}
        epoch = pd.DataFrame({way: [1.0, 1.0] for way in training.OURS.values()} | peers)
        goal, *_ = training.goals_of(name, width, epoch, epoch)
        return goal.goal, goal.met

    assert judged("cnn13", 0.125, [1.5, 1.6]) == ("at least 1.5", True)
    assert judged("cnn13", 0.125, [1.4, 1.6]) == ("at least 1.5", False)
    assert judged("cnn13", 0.25, [1.0, 1.1]) == ("not slower", True)
    assert judged("resnet34", 0.125, [0.9, 1.1]) == ("not slower", False)


def test_epochs_are_those_of_the_plan(report: Run) -> None:
    """By hand: 160 epochs a run; SGD and `end` are one training, `ours` has 80 epochs of it."""
    narrow = ("dataset=cifar100", "model=cnn13", "seed=0")
    record = report(epochs, "--tables", "t1c", "--overrides", *narrow)
    (table,) = tables(record)
    assert list(table[""]) == ["table t1c", "all together"]
    counts = [list(table[column]) for column in epochs.COUNTS]
    assert counts == [["640", "640"], ["640", "640"], ["400", "400"]]
    assert record["goals"][0]["measured"] == "0.625 (400 of 640)"


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (batches, ["--data-dir", "nowhere"], "--data-dir=nowhere: holds no whole cifar-100-python"),
        (training, [*ONE_THIN, "--timm", "nowhere"], "--timm=nowhere: has no train.py"),
        (training, [*ONE_THIN, "--overrides", "averaging=x"], "averaging=x: there is no such"),
        (training, [*FEW_IMAGES, "--models", "x"], "model=x: there is no such option"),
        (epochs, ["--tables", "7"], "table=7: there is no such option"),
        (optimizers, ["--device", "x"], "--device=x: there is no such device"),
    ],
)
def test_mistakes_are_told_in_one_line(
    benchmark: ModuleType,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    GlobalHydra.instance().clear()
    output = tmp_path / "record.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--output", str(output)])
    assert benchmark.main() == 2
    told = capsys.readouterr()
    name = benchmark.__name__.rpartition(".")[2]
    assert told.out == ""
    assert told.err.splitlines()[-1].startswith(f"{name}.py: {message}")
    assert not output.exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--rounds", "76"), "--rounds=76 must be at most 75"),
        (("--epochs", "2"), "--epochs=2 must be at least 3"),
    ],
)
def test_rounds_fit_into_a_phase(
    wrong: tuple[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *wrong])
    with pytest.raises(SystemExit, match="2"):
        averaging.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--images", "150"], ["--images", "200", "--batch-size", "64"]])
def test_images_are_as_many_of_each_class_in_whole_batches(
    wrong: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *wrong])
    with pytest.raises(SystemExit, match="2"):
        training.main()
    assert "multiple of" in capsys.readouterr().err


def test_starting_is_told_beyond_the_import_of_torch(
    report: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 0.5 seconds of the processor more."""
    made = {startup.TORCH: (2.0, 1.0), startup.DIGITS: (3.0, 1.5)}
    monkeypatch.setattr(startup, "processes", lambda *_: {name: [name] for name in made})
    monkeypatch.setattr(startup, "started", lambda arguments, _: made[arguments[0]])
    record = report(startup, "--rounds", "2", "--threads", "1")
    (table,) = tables(record)
    assert list(table[""]) == [startup.TORCH, startup.DIGITS]
    require_numbers(table.iloc[1:], {""})
    beyond = float(table["processor, beyond import torch"][1].split()[0])
    assert beyond == 0.5
    (goal,) = record["goals"]
    assert (goal["what"], goal["met"]) == (startup.DIGITS, True)


def test_starting_ends_with_the_first_step(tmp_path: Path) -> None:
    given = argparse.Namespace(data_dir=None)
    digits = startup.processes(given, str(tmp_path))[startup.DIGITS]
    seconds, processor = startup.started(digits, threads=1)
    assert seconds > 0
    assert processor > 0
    (folder,) = tmp_path.glob("digits-*")
    assert not (folder / "result.json").exists()
    with pytest.raises(UserError, match="there is no such option"):
        startup.started([*digits, "model=none"], threads=1)
