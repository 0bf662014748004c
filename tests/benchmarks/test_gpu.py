"""The benchmark for GPUs, rehearsed on a CPU; what it takes for the least time, by hand."""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torch import nn

from benchmarks import gpu, roofline
from benchmarks.page import TITLES

SMALL = ("--width", "0.0625", "--images", "100", "--batch-size", "20", "--matrix", "64")
REHEARSAL = ("--device", "cpu", "--seconds", "0", *SMALL)


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that measures a part and returns its record."""

    def run(part: str, *arguments: str) -> dict[str, Any]:
        GlobalHydra.instance().clear()
        output = tmp_path / f"gpu-{part}.json"
        typed = [part, *REHEARSAL, "--output", str(output), *arguments]
        monkeypatch.setattr(sys, "argv", ["gpu", *typed])
        assert gpu.main() == 0
        return json.loads(output.read_text())

    return run


def test_the_least_time_of_a_linear_layer_by_hand() -> None:
    """Each operation with its inputs and outputs; there is no bias, and no gradient of images."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10, bias=False))
    flops = 2 * 6 * 48 * 10  # forward
    flops *= 2  # and for the gradient of the weights
    seconds, kernels = roofline.least_seconds(model, (6, 3, 4, 4), rate=1.0, bandwidth=1e30)
    assert seconds == pytest.approx(flops)
    x, w, y = 6 * 48, 10 * 48, 6 * 10  # numbers
    product = 2 * (x + w + y)
    to_float, softmax = 2 * y + 4 * y, 4 * y + 4 * y
    loss = 4 * y + 8 * 6 + 4 + 4  # numbers, labels, mean and weight of all
    back = [4 + 4 * y + 8 * 6 + 4 + 4 * y, 3 * 4 * y, 4 * y + 2 * y]
    update = roofline.OF_SGD * w
    expected = 2 * product + to_float + softmax + loss + sum(back) + update
    found, _ = roofline.least_seconds(model, (6, 3, 4, 4), rate=1e30, bandwidth=1.0)
    assert found == pytest.approx(expected, rel=0.05)  # and a one, where the backward pass begins
    assert 8 <= kernels <= 12


def test_a_larger_batch_takes_as_much_longer_where_arithmetic_counts() -> None:
    def seconds(batch: int) -> float:
        with torch.device("meta"):
            model = nn.Conv2d(3, 8, 3)
        model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return roofline.least_seconds(model, (batch, 3, 8, 8), rate=1.0, bandwidth=1e30)[0]

    assert seconds(4) == pytest.approx(2 * seconds(2))
    assert seconds(2) == 2 * (2 * 2 * 8 * 3 * 9 * 6 * 6)  # forward and for the weights


def test_networks_are_measured_way_by_way_and_kept(rehearsed: Any) -> None:
    ways = ("--ways", gpu.PLAIN, "bf16, NHWC, graph, compiled")
    record = rehearsed("networks", "--models", "cnn13", *ways[:2])
    record = rehearsed("networks", "--models", "resnet34", *ways[:2])
    rows = pd.DataFrame(record["rounds"]["networks"])
    assert list(rows["network"]) == ["cnn13", "resnet34"]
    assert (rows[["images_per_second", "first_seconds", "least_seconds", "flops"]] > 0).all(
        axis=None
    )
    assert record["title"] == TITLES["gpu-networks"]
    (table,) = record["tables"]
    assert [row["way"] for row in table["rows"]] == [gpu.PLAIN] * 2
    assert [goal["met"] for goal in record["goals"]] == [None, None]  # asked of one card alone


def test_a_way_that_fails_does_not_stop_the_others(
    rehearsed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {"broken": ["execution.graph=true"], **gpu.DETERMINISM}
    monkeypatch.setattr(gpu, "DETERMINISM", dict(list(broken.items())[:2]))
    record = rehearsed("determinism", "--models", "cnn13")
    assert [row["way"] for row in record["rounds"]["determinism"]] == ["profile=fast"]
    assert "cnn13, broken: skipped: execution.graph=true: cpu has no" in capsys.readouterr().err


def test_after_a_failure_on_the_device_no_more_is_measured_there(
    rehearsed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured, done = gpu.Training.measured, []

    def fails(self: Any, seconds: float) -> dict[str, float]:
        done.append(self)
        if len(done) == 2:
            raise RuntimeError("the device is gone")
        return measured(self, seconds)

    monkeypatch.setattr(gpu.Training, "measured", fails)
    record = rehearsed("determinism", "--models", "cnn13")
    assert [row["way"] for row in record["rounds"]["determinism"]] == ["profile=fast"]
    assert "failed, and so no more of cnn13: the device is gone" in capsys.readouterr().err
    assert len(done) == 2


def test_kernels_are_named_with_their_share(rehearsed: Any) -> None:
    rows = rehearsed("kernels", "--models", "cnn13")["rounds"]["kernels"]
    assert rows[0]["kernel"] == "all"
    times = [row["milliseconds_per_step"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert sum(times[1:]) <= times[0]


def test_networks_for_imagenet_are_rehearsed(
    rehearsed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "CHUNK", 1)
    few = ("--images", "2", "--batch-size", "2")
    record = rehearsed("imagenet", "--models", "resnet50", "--ways", gpu.PLAIN, *few)
    (row,) = record["rounds"]["imagenet"]
    assert row["images_per_second"] > 0


def test_a_device_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "networks", "--device", "tpu"])
    assert gpu.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu.py: --device=tpu: there is no such device here; choices: auto")
    assert said.count("\n") == 1
