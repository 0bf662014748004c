"""Command lines: what a user sees of success, mistakes and failures."""

import io
import json
import os
import pickle
import re
import signal
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY, Prompt, assert_one_line
from omegaconf import DictConfig

from phaseavg.cli import LastingOutput, _run_sweep_job
from phaseavg.errors import Diverged, Interrupted, JobFailed, UserError

MISTAKES = {
    "unknown key": ("datset=digits", "datset: there is no such key", "did you mean dataset?"),
    "unknown option": ("model=resnet43", "model=resnet43: ", "did you mean resnet34?"),
    "unknown device": ("execution.device=cuda:99", "execution.device=cuda:99", "choices: auto"),
    "unsupported by the device": (
        "execution.graph=true execution.device=cpu",
        "execution.graph=true: cpu has no CUDA graphs",
        "choices: false, auto",
    ),
    "not among the choices": ("execution.precision=fp8", "execution.precision='fp8'", "'tf32'"),
    "wrong type": ("seed=1.5", "seed=1.5: ", "integer"),
    "text for a number": ("optimizer.lr=fast", "optimizer.lr='fast': ", "number"),
    "text for a part": ("averaging.weights=uniform", "averaging.weights='uniform'", "Weights"),
    "not finite": ("averaging.weights.gamma0=nan", "averaging.weights.gamma0=nan", "finite"),
    "rejected by a constructor": ("schedule.epochs=[0,2,1]", "epochs=[0, 2, 1]", "positive"),
    "rejected by an inner part": (
        "optimizer=lookahead optimizer.inner.lr=-1",
        "optimizer.inner: ",
        "-1",
    ),
    "missing": ("~seed", "seed: is missing; add seed=…\n", ""),
    "left open": ("seed=???", "seed: is missing; add seed=…\n", ""),
    "missing argument": ("~schedule.factors", "schedule: ", "missing a required argument"),
    "missing target": ("~averaging._target_", "averaging._target_: is missing", ""),
    "no part": ("averaging=null", "averaging=null", "--help"),
    "another kind of inner part": (
        "+schedule.shape._target_=phaseavg.averaging.Uniform",
        "schedule.shape._target_=phaseavg.averaging.Uniform: ",
        ", not Uniform",
    ),
    "name of the average": ("+averaging@observers.average=uniform", "observers.average: ", "new"),
    "observer without average": ("+averaging@observers.a=none", "observers.a=", "no average"),
    "missing data": (
        "dataset=cifar100 data_dir=/proc/nope",
        "data_dir=/proc/nope: CIFAR100 is missing or damaged",
        "",
    ),
    "folder without a name": ("runs_dir=", "runs_dir='': ", "must name a folder"),
    "folder that cannot be made": (
        "runs_dir=/proc/nope",
        "/proc/nope/digits-cnn13-sgd-phasewise-seed0-",
        "set a writable runs_dir",
    ),
    "interpolation": ("optimizer.lr=${nowhere}", "nowhere", "not found"),
    "grammar": ("seed=[1", "[1", ""),
    "of a sweep": ("plan=0", "plan: only a sweep has this option", "add -m"),
    "several values": ("budget=5m,6m -m", "budget=5m,6m", "one value for all runs"),
    "no values": ("seed=range(3,0) -m", "seed=range(3,0)", "stands for no value"),
}
"""Kinds of mistakes: an override, the field that is named, and a hint."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_prints_one_line_returns_2_and_writes_nothing(
    prompt: Prompt, tmp_path: Path, mistake: str
) -> None:
    override, field, hint = MISTAKES[mistake]
    output = prompt(*TINY, *override.split())
    assert_one_line(output, field)
    assert output[1] == ""
    assert hint in output[2]
    assert not list(tmp_path.iterdir())


FILES = {
    "syntax": (b"epochs: [1\n", 'schedule/mine.yaml", line 2, column 1'),
    "list": (b"- a\n", "schedule=['a']: "),
    "letters": (b"a: \xff\n", "'utf-8' codec can't decode byte 0xff"),
}


@pytest.mark.parametrize("mistake", FILES)
def test_a_mistake_in_a_config_file_prints_one_line(
    prompt: Prompt, tmp_path: Path, mistake: str
) -> None:
    content, message = FILES[mistake]
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_bytes(content)
    output = prompt("schedule=mine", "dry_run=true", f"--config-dir={tmp_path}")
    assert_one_line(output, message)
    assert output[1] == ""


TABLE = "title: mine\nrows: [[dataset=digits, model=cnn13_digits]]\ncolumns: {{a: [{}]}}\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('"seed=[1"', "table=mine: seed=[1: is not an override"),
        ('"averaging=none,uniform"', "table=mine: averaging=none,uniform: must have one value"),
    ],
)
def test_a_mistake_in_a_table_prints_one_line(
    prompt: Prompt, tmp_path: Path, override: str, message: str
) -> None:
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "mine.yaml").write_text(TABLE.format(override))
    typed = ("-m", *TINY[:1], "table=mine", "plan=true", f"--config-dir={tmp_path}")
    assert_one_line(prompt(*typed), message)


def test_a_diverged_run_is_recorded_with_step_epoch_and_rate(
    prompt: Prompt, tmp_path: Path
) -> None:
    status, _, err = prompt(*TINY, "optimizer.lr=1e20")
    assert status == 1
    message = r"train\.py: diverged: the training loss became (nan|inf) at step \d+ \(epoch 1, "
    assert re.match(message + r"learning rate 1e\+20\)\n$", err)
    (record,) = tmp_path.glob("runs/*/result.json")
    result = json.loads(record.read_text())
    assert result["status"] == "diverged"
    assert re.match(r"the training loss became (nan|inf)$", result["reason"])
    assert 1 <= result["step"] <= 8
    assert (result["epoch"], result["learning_rate"]) == (1, 1e20)
    observed = "+averaging@observers.swa=uniform"
    status, again, err_again = prompt(*TINY, "optimizer.lr=1e20", observed)
    assert (status, err_again) == (1, err)
    assert "finished before" in again


OUTCOME = {"reason": "the loss became nan", "step": 3, "epoch": 1, "learning_rate": 0.1}


@pytest.mark.parametrize("error", [Diverged(OUTCOME), Interrupted(signal.SIGTERM, "saved")])
def test_an_error_arrives_unchanged_from_a_worker_process(error: BaseException) -> None:
    received = pickle.loads(pickle.dumps(error))
    assert (type(received), str(received)) == (type(error), str(error))
    assert vars(received) == vars(error)


def test_a_run_that_fails_in_training_records_the_reason_and_can_resume(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("phaseavg.training.loop.evaluate", lambda *_: 1 / 0)
        status, _, err = prompt(*TINY)
    assert status == 1
    assert "ZeroDivisionError" in err
    (failure,) = tmp_path.glob("runs/*/failure.json")
    assert "ZeroDivisionError" in json.loads(failure.read_text())["error"]
    status, _, _ = prompt(*TINY)
    assert status == 0
    assert not failure.exists()


@pytest.mark.parametrize(("kind", "kept"), [(RuntimeError, JobFailed), (UserError, UserError)])
def test_a_failed_run_of_a_sweep_keeps_no_memory(
    kind: type[Exception], kept: type[Exception]
) -> None:
    class Network:
        pass

    def job(config: DictConfig) -> None:
        network = Network()
        held.append(weakref.ref(network))
        raise kind("out of memory")

    held: list[weakref.ref] = []
    names = SimpleNamespace(task=[]), SimpleNamespace(name="run 1 of 2")
    hydra = SimpleNamespace(overrides=names[0], job=names[1])
    with pytest.raises(kept, match="out of memory"):
        _run_sweep_job(job, DictConfig({}), hydra)
    assert held[0]() is None


def test_output_goes_on_if_its_reader_has_ended(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        output = LastingOutput(stream)
        os.close(reading)
        for _ in range(3):
            print("a line", file=output, flush=True)
    assert capfd.readouterr().err == "the reader of the output has ended; going on without it\n"


def test_output_escapes_characters_that_its_encoding_does_not_have() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("3×8×8", file=LastingOutput(stream), flush=True)
    assert stream.buffer.getvalue() == b"3\\xd78\\xd78\n"
