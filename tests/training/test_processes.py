"""Several processes of torchrun train one run: the same numbers, one folder, and one message."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conftest import REPOSITORY, TINY, Compose, history_of, result_of, weights_of
from training.test_methods import sgd, train_plainly

from phaseavg import processes
from phaseavg.averaging import Phasewise
from phaseavg.data import DataSet, digits
from phaseavg.errors import ProcessLost, UserError
from phaseavg.training.execution import prepare
from phaseavg.training.parts import assemble, load_data, new_model

SLOW = pytest.mark.slow

PARTS = """
import os
import torch
from torch import nn

class Plain(nn.Sequential):  # no BatchNorm: the number of processes makes no difference
    def __init__(self, num_classes, in_channels, image_size):
        size = in_channels * image_size**2
        super().__init__(nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, num_classes))

class Dying(Plain):
    def __init__(self, num_classes, in_channels, image_size, how):
        super().__init__(num_classes, in_channels, image_size)
        self.how, self.calls = how, 0

    def __deepcopy__(self, memo):
        return Plain(10, 1, 8)

    def forward(self, images):
        self.calls += 1
        if self.calls == 12 and os.environ["RANK"] == "1":
            if self.how == "exit":
                os._exit(7)
            raise RuntimeError("something broke")
        return super().forward(images)
"""

RUN = (*TINY, "save_weights=true", "batch_size=275")
"""A run of 4 steps an epoch, with shares of 138 and 137 images, and at last 88 and 87."""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Return a function that trains a run in processes; it returns the status and the output."""
    (tmp_path / "parts.py").write_text(PARTS)

    def run(*overrides: str, count: int = 2, interrupt: int | None = None) -> tuple[int, str]:
        program = [sys.executable]
        if count > 1:
            program += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        folders = (f"runs_dir={tmp_path}/runs", f"records_dir={tmp_path}/records")
        paths = os.pathsep.join(map(str, (tmp_path, REPOSITORY)))
        process = subprocess.Popen(
            [*program, str(REPOSITORY / "train.py"), *folders, *overrides],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if interrupt is not None and line.startswith("epoch 1/"):
                    process.send_signal(interrupt)
            return process.wait(), "".join(lines)
        finally:
            process.terminate()  # torchrun then ends its processes, too

    return run


def test_two_processes_train_like_a_loop_over_their_shares(
    compose_settings: Compose, start: Callable[..., tuple[int, str]]
) -> None:
    settings = compose_settings(*RUN)
    status, output = start(*RUN)
    assert status == 0, output
    assert output.count("5 epochs of 4 steps") == output.count("test error") == 1
    model, expected = train_plainly(settings, sgd, Phasewise, processes=2)
    actual = weights_of(settings)
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    ends = [line for line in history_of(settings) if "replaced" in line]
    tests = [line for line in expected if "average" in line]
    assert len(ends) == len(tests) == 3
    for line, plain_line in zip(ends, tests, strict=True):
        assert {line["train"]["images"], line["test_images"]} == {1000, 797}
        for kind in ("train", "weights", "average"):
            assert line[kind]["loss"] == pytest.approx(plain_line[kind]["loss"], rel=1e-4)
    assert result_of(settings)["provenance"][-1]["execution"]["processes"] == 2


def plain(overrides: tuple[str, ...], *more: str) -> tuple[str, ...]:
    """Return the overrides of a run with the network `Plain`."""
    model = ("~model.width", "~model.pools", "model._target_=parts.Plain")
    return (*(o for o in overrides if not o.startswith("model.")), *model, *more)


def compare(
    actual: tuple[dict[str, torch.Tensor], list[dict[str, Any]]],
    expected: tuple[dict[str, torch.Tensor], list[dict[str, Any]]],
) -> None:
    """Compare weights and training metrics, up to rounding."""
    for name, tensor in expected[0].items():
        torch.testing.assert_close(actual[0][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    for line, expected_line in zip(actual[1], expected[1], strict=True):
        assert line["train"]["images"] == 1000
        assert line["train"]["loss"] == pytest.approx(expected_line["train"]["loss"], rel=1e-5)


def test_a_process_that_cannot_reach_the_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = Mock(side_effect=torch.distributed.DistNetworkError("the server is gone"))
    monkeypatch.setattr(processes, "launched", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", fails)
    monkeypatch.setenv("RANK", "1")
    message = r"process 1 lost contact .*the server is gone.*rerun the same command"
    with pytest.raises(ProcessLost, match=message), processes.joined():
        pass


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_with_synchronised_batchnorm_two_processes_train_as_one(
    start: Callable[..., tuple[int, str]], compose_settings: Compose
) -> None:
    options = (*RUN, "execution.device=cuda", "execution.sync_batchnorm=true")
    outcomes = []
    for count in (2, 1):
        status, output = start(*options, "rerun=true", count=count)
        assert status == 0, output
        settings = compose_settings(*options)
        outcomes.append((weights_of(settings), history_of(settings)))
    compare(*outcomes)


def test_a_layer_that_torchs_synchronisation_would_cut_is_rejected(
    compose_settings: Compose,
) -> None:
    options = ("model=timm", "model.name=test_efficientnet", "execution.sync_batchnorm=true")
    settings = compose_settings("preset=demo", *options)
    data = load_data(settings, torch.device("cpu"))
    with pytest.raises(UserError, match="BatchNormAct2d is more than a BatchNorm layer"):
        new_model(settings, data)


@SLOW
@pytest.mark.parametrize(
    "options",
    [
        ("optimizer=lookahead", "optimizer_state=reset", "save_trajectory=steps"),
        ("optimizer=adam", "+averaging@observers.a=uniform", "evaluation.average_every=1"),
        ("execution.compile=true", "averaging/weights=bema", "evaluation.every=1"),
    ],
)
def test_options_work_with_two_processes(
    compose_settings: Compose,
    start: Callable[..., tuple[int, str]],
    tmp_path: Path,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = plain(RUN, *options)
    status, output = start(*run)
    assert status == 0, output
    monkeypatch.syspath_prepend(tmp_path)
    settings = compose_settings(*run)
    actual = weights_of(settings), history_of(settings)
    saved = [path.name for path in (settings.run_folder / "trajectory").glob("*")]
    status, output = start(*run, "rerun=true", count=1)
    assert status == 0, output
    compare(actual, (weights_of(settings), history_of(settings)))
    again = [path.name for path in (settings.run_folder / "trajectory").glob("*")]
    assert sorted(saved) == sorted(again)
    assert bool(saved) == ("save_trajectory=steps" in options)


@SLOW
@pytest.mark.parametrize("counts", [(2, 2), (3, 1), (1, 2)])
def test_a_run_stopped_in_an_epoch_ends_equal_with_another_number_of_processes(
    compose_settings: Compose,
    start: Callable[..., tuple[int, str]],
    tmp_path: Path,
    counts: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = plain(RUN, "checkpoint_seconds=1000")
    status, output = start(*run, "deadline=0", count=counts[0])
    assert status in (1, 130), output
    assert "out of time after step 1 " in output
    status, output = start(*run, count=counts[1])
    assert status == 0, output
    assert "from step 1;" in output
    monkeypatch.syspath_prepend(tmp_path)
    settings = compose_settings(*run)
    actual = weights_of(settings), history_of(settings)
    status, output = start(*run, "rerun=true", count=1)
    assert status == 0, output
    compare(actual, (weights_of(settings), history_of(settings)))


@SLOW
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_saves_the_run(
    start: Callable[..., tuple[int, str]], number: int
) -> None:
    run = (*RUN, "schedule.epochs=[10000]", "schedule.factors=[1]", "checkpoint_seconds=1000")
    status, output = start(*run, interrupt=number)
    assert status == 1  # of torchrun
    (message,) = re.findall(r"train\.py: interrupted after step (\d+) .*; saved in", output)
    status, output = start(*run, "deadline=0", count=1)
    assert f"from step {message};" in output


@SLOW
@pytest.mark.parametrize(
    ("how", "reason"), [("exit", "exitcode  : 7"), ("raise", "something broke")]
)
def test_a_process_that_dies_ends_the_others_and_says_why(
    start: Callable[..., tuple[int, str]], how: str, reason: str
) -> None:
    status, output = start(*plain(RUN, "model._target_=parts.Dying", f"+model.how={how}"))
    assert status == 1
    assert reason in output
    assert output.count("Traceback") == 1 + (how == "raise"), output  # the others are torchrun's


@SLOW
def test_a_dry_run_and_a_diverged_run_are_reported_once(
    compose_settings: Compose, start: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    status, output = start(*RUN, "dry_run=true")
    assert status == 0, output
    assert output.count("phase 3 ") == 1
    assert not (tmp_path / "runs").exists()
    run = (*RUN, "optimizer.lr=1e20")
    status, output = start(*run)
    assert status == 1
    assert output.count("train.py: diverged: the training loss became nan") == 1
    assert result_of(compose_settings(*run))["status"] == "diverged"


@SLOW
def test_a_mistake_is_printed_once(start: Callable[..., tuple[int, str]]) -> None:
    for mistake, message in {
        "model=cn13": "cn13",
        "seed=-1": "seed=-1: ",
        "-m": "-m: torchrun trains a single run",
    }.items():
        status, output = start(*TINY, mistake)
        assert status == 1  # of torchrun
        assert [message in line for line in output.splitlines()].count(True) == 1, output


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be the first of two processes."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda objects: None)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))


@pytest.mark.usefixtures("two_processes")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["execution.graph=true"], "execution.graph=true: needs a single process"),
        (
            ["execution.sync_batchnorm=true", "execution.device=cpu"],
            "execution.sync_batchnorm=true",
        ),
        (["averaging=rna"], r"averaging\.weights=RNA: "),
        (["+averaging@observers.a=rna"], r"observers\.a\.weights=RNA: "),
        (["batch_size=999"], "batch_size=999: the last batch of an epoch has 1 image"),
        ([f"dataset._target_={__name__}.own"], r"dataset=\S*own: has no parameters"),
        (
            [f"dataset._target_={__name__}.undivided", "batch_size=20"],
            r"dataset=\S*undivided: the first batch of 20 has 40 images over 2 processes",
        ),
    ],
)
def test_what_needs_one_process_is_rejected_before_training(
    compose_settings: Compose, overrides: list[str], message: str
) -> None:
    settings = compose_settings(*TINY, *overrides)
    with pytest.raises(UserError, match=f"^{message}"):
        assemble(*prepare(settings))


def own(batch_size: int, seed: int, label_noise=0, padding=0, pad_value="") -> DataSet:
    """Stand for a user's data set that yields whole batches only."""
    raise AssertionError


def undivided(batch_size: int, seed: int, rank: int, world_size: int, **options: Any) -> DataSet:
    """Stand for a user's data set that takes a share and ignores it."""
    return digits(batch_size, seed)


def test_more_processes_than_gpus_are_rejected(
    monkeypatch: pytest.MonkeyPatch, compose_settings: Compose, two_processes: None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(processes, "local_count", lambda: 2)
    for device, message in {
        "auto": r"torchrun --nproc-per-node=2: this machine has 1 GPU\(s\)",
        "cuda:0": "execution.device=cuda:0: 2 processes cannot share one device",
    }.items():
        with pytest.raises(UserError, match=message):
            prepare(compose_settings(*TINY, f"execution.device={device}"))


def test_an_error_of_the_first_process_is_raised_in_it(
    two_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda o: sent.append([*o]))
    with pytest.raises(ValueError, match="wrong"):
        processes.on_first(Mock(side_effect=ValueError("wrong")))()
    assert sent == [[None, "wrong"]]
