"""Benchmarks: compared ways, records of every round, invalid arguments."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from benchmarks import averaging, common, gpu, training
from benchmarks import input as batches

pytestmark = pytest.mark.filterwarnings("ignore:Overwriting phaseavg_network")

SHORT = ("--rounds", "2", "--seconds", "0")
THIN_TRAINING = (
    *(*SHORT, "--images", "20", "--batch-size", "10"),
    *("--models", "cnn13", "--width", "0.0625"),
)
THIN_AVERAGING = (
    *(*SHORT, "--batch-size", "2", "--width", "0.04"),
    *("--rna-epochs", "4", "--scale", "0.001", "--models"),
)
TIMM_SCRIPT = """
import argparse
from timm.models import create_model
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.transforms import ToTensor

def create_dataset(*_, **__):
    raise AssertionError("reads its own images")

def create_loader(dataset, batch_size, persistent_workers=True):
    dataset.transform = ToTensor()
    return DataLoader(dataset, batch_size, persistent_workers=persistent_workers)

def train_one_epoch(model, loader):
    sizes = []
    for images, labels in loader:
        cross_entropy(model(images), labels).backward()
        sizes.append(len(labels))
    assert sizes == [10, 10]

def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--amp-dtype", default="float32")
    given, others = parser.parse_known_args()
    assert (given.amp_dtype == "bfloat16") == ("--channels-last" in others)
    print("not part of the table")
    model = create_model(given.model, num_classes=100)
    train_one_epoch(model, create_loader(create_dataset(), given.batch_size))
"""

Record = dict[str, Any]
Run = Callable[..., tuple[pd.DataFrame, Record]]


def table_of(text: str) -> pd.DataFrame:
    """Parse the only Markdown table of a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return pd.DataFrame(rows, columns=head)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs a benchmark and returns its table and the last record."""

    def run(benchmark: ModuleType, *arguments: str) -> tuple[pd.DataFrame, Record]:
        GlobalHydra.instance().clear()
        output = tmp_path / "results" / "record.jsonl"
        monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--output", str(output)])
        assert benchmark.main() == 0
        lines = output.read_text().splitlines()
        assert str(tmp_path) not in lines[-1]
        record = json.loads(lines[-1])
        assert {"date", "device", "threads", "versions", "options", "rounds"} == set(record)
        assert {"python", "torch", "numpy"} <= set(record["versions"])
        return table_of(capsys.readouterr().out), record

    return run


def require_ratios_of_rounds(table: pd.DataFrame, record: Record) -> None:
    """Check that each row has the minimum, median and maximum over the record's rounds."""
    for _, row in table.iterrows():
        rounds = pd.DataFrame(record["rounds"][row["measured"]])
        assert (rounds > 0).all(axis=None) and len(rounds) == 2
        what, baseline = rounds[row["what"]], rounds[row["baseline"]]
        assert row["seconds"] == common.spread(what)
        assert row["baseline seconds"] == common.spread(baseline)
        assert row["ratio"] == common.spread(what / baseline)


def test_each_round_runs_every_contender_once_in_rotated_order() -> None:
    order = []
    ways = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    rounds = common.time_rounds(ways, rounds=3, seconds=60)
    assert "".join(order) == "abcbcacab"
    assert rounds.values.tolist() == [[1, 2, 3], [6, 4, 5], [8, 9, 7]]
    assert len(common.time_rounds(ways, rounds=9, seconds=0)) == 2
    assert common.spread(rounds["b"]) == "4 (2–9)"


def test_the_input_benchmark_appends_a_record(run: Run, tmp_path: Path) -> None:
    run(batches, *SHORT, "--images", "128", "--files", "0")
    table, record = run(batches, *SHORT, "--images", "200", "--files", "4")
    lines = (tmp_path / "results" / "record.jsonl").read_text().splitlines()
    assert [json.loads(line)["options"]["images"] for line in lines] == [128, 200]
    require_ratios_of_rounds(table, record)
    assert set(table["baseline"]) == {"ours"}
    assert [(row["measured"], row["what"]) for _, row in table.iterrows()] == [
        ("200 images in memory", "torchvision, 0 workers"),
        ("200 images in memory", "torchvision, 2 workers"),
        ("4 image files", "torchvision, 0 workers"),
        ("4 image files", "ours, in tar shards"),
    ]


@pytest.mark.slow
def test_the_training_benchmark_with_timm_and_torchvision(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TIMM_SCRIPT)
    table, record = run(training, *THIN_TRAINING, "--timm", str(tmp_path))
    require_ratios_of_rounds(table, record)
    assert "timm" in record["versions"]
    ours = ["ours, profile=deterministic", "ours, profile=fast"]
    peers = {"epoch of cnn13": [training.TORCHVISION, *training.TIMM]}
    peers["step of cnn13"] = [training.TORCHVISION]
    expected = [(m, p, way) for m, of in peers.items() for p in of for way in ours]
    assert (
        list(table[["measured", "what", "baseline"]].itertuples(index=False, name=None)) == expected
    )
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_the_averaging_benchmark_with_training_and_other_libraries(run: Run) -> None:
    table, record = run(averaging, *THIN_AVERAGING, "cnn13", "resnet34")
    network_rows = table["baseline"] == "epoch of training"
    assert list(table[network_rows]["measured"]) == ["cnn13"] * 5 + ["resnet34"] * 3
    require_ratios_of_rounds(table[~network_rows], record)
    assert {"torch AveragedModel", "timm ModelEmaV3"} <= set(table["baseline"])
    assert len(set(table[~network_rows]["measured"])) == len(averaging.SIZES)
    assert {"torch", "timm"} <= set(record["versions"])


def test_averaging_as_a_share_of_an_epoch() -> None:
    seconds = {"step": [0.5], "exponential, at its end": [0.1], "BatchNorm batch": [0.2]}
    rows = averaging.training_rows("net", pd.DataFrame(seconds), steps=100)
    found = {row["what"]: (row["seconds"], row["ratio"]) for row in rows}  # an epoch takes 50 s
    assert found["exponential, at its end"] == ("0.1 (0.1–0.1)", "0.002 (0.002–0.002)")
    assert found["BatchNorm pass"] == ("20 (20–20)", "0.4 (0.4–0.4)")


def test_differing_averages_are_not_timed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ema = averaging.ModelEmaV3
    wrong = lambda model, decay: ema(model, decay=0.99 * decay)  # noqa: E731
    monkeypatch.setattr(averaging, "ModelEmaV3", wrong)
    with pytest.raises(AssertionError, match="not close"):
        run(averaging, *THIN_AVERAGING, "cnn13")
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_gpu_benchmark_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unsupported execution modes are skipped; epochs have 5,000 steps of 10 images."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(gpu, "CHUNK", 1)
    monkeypatch.setitem(gpu.WAYS, "recorded", ["execution.graph=true"])
    ways = [gpu.PLAIN, "deterministic", "recorded"]
    small = {"ways": ways, "width": 0.0625, "batch_size": 10, "rounds": 2, "seconds": 0}
    rounds, rows = gpu.measure("cnn13", argparse.Namespace(**small), common.CPU)
    assert "cnn13, recorded: skipped: execution.graph=true" in capsys.readouterr().err
    times, table = rounds["step of cnn13"], pd.DataFrame(rows)
    ends = ["phase end, average on cpu", "BatchNorm pass"]
    assert list(table["what"]) == [gpu.PLAIN, gpu.PLAIN, *ends]
    plain, other = times[gpu.PLAIN], times["deterministic"]
    assert list(table["ratio"][:2]) == [common.spread(plain / other)] * 2
    assert list(table["seconds"][:2]) == [common.spread(plain), common.spread(5000 * plain)]
    assert table["ratio"][3] == common.spread(times["BatchNorm pass"] / plain)


@pytest.mark.parametrize(
    ("benchmark", "arguments", "message"),
    [
        (gpu, [], "gpu.py: needs an NVIDIA GPU"),
        (training, [*THIN_TRAINING, "--timm", "no"], "training.py: --timm=no: has no train.py"),
        (averaging, ["--rounds", "8000"], "averaging.py: --rounds=8000: must be at most 7990"),
    ],
)
def test_invalid_arguments_give_a_one_line_message_and_status_2(
    benchmark: ModuleType,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "record.jsonl"
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--output", str(output)])
    assert benchmark.main() == 2
    output_texts = capsys.readouterr()
    assert output_texts.out == "" and output_texts.err.count("\n") == 1
    assert output_texts.err.startswith(message)
    assert not output.exists()
