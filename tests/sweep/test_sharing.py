"""Shared prefixes are trained once, and all results are bitwise equal."""

import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import victims as victim
from conftest import TINY, Prompt, also_slow, composed
from sweep.outcomes import SHORT, assert_equal, inherited, outcomes, results

from phaseavg.config import check
from phaseavg.errors import UserError
from phaseavg.runs.folder import RunFolder
from phaseavg.sweep import sweeper
from phaseavg.training import loop, sharing
from phaseavg.training.sharing import Sharing, adapt_metrics

AVERAGINGS = "averaging=none,phasewise,rna,end"
STEPS = 4
"""In an epoch of `SHORT`."""


ALL = {"atend": 5, "noaveraging": 5, "phasewise": 2, "phasewise_rna": 2}
FAMILIES = [
    # A window that begins inside the prefix.
    ("averaging=end averaging.window=phase,training", {"atend": 5}, 5),
    *also_slow(
        # An average with the weights at the start of its window, and one that is not incremental.
        (
            "averaging=phasewise averaging/weights=bema,blend",
            {"phasewise_bema": 2, "phasewise_blend": 2},
            2 + 3 + 3,
        ),
        (
            "averaging=rna averaging.weights.rho=1e-5,1e-2 checkpoint_seconds=0",
            {"phasewise_rna": 2},
            2 + 3 + 3,
        ),
        # With Adam's state, and learning rates step by step.
        (
            f"{AVERAGINGS} optimizer=amsgrad optimizer_state=reset schedule=decayed "
            "schedule.shape.per=step schedule.epochs=[2,2,1]",
            ALL,
            5 + 3 + 3,
        ),
        (f"{AVERAGINGS} optimizer=lookahead", ALL, 5 + 3 + 3),
        # One phase: everything is shared.
        (
            f"{AVERAGINGS} schedule=cosine schedule.epochs=[3]",
            {"atend": 3, "noaveraging": 3, "phasewise": 3, "phasewise_rna": 3},
            3,
        ),
        # The prefix also evaluates the epochs that its runs evaluate.
        (
            "averaging=none,uniform,phasewise evaluation.average_every=1 "
            "evaluation.batchnorm_every=2 batchnorm_batches=3 +averaging@observers.swa=uniform",
            {"noaveraging": 2, "phasewise": 2, "phasewise_uniform": 2},
            5 + 3 + 3,
        ),
        # A chain of prefixes, each of which starts from a shorter one.
        (
            "schedule.factors=[1,0.1] schedule.epochs=[1,1],[2,1],[4,1] "
            "averaging=none,phasewise,rna",
            {},
            (1 + 1) + (1 + 1) + (2 + 1) + 2 * (1 + 1 + 1),
        ),
    ),
]


@pytest.mark.parametrize(("family", "shared", "epochs"), FAMILIES)
def test_a_run_with_a_shared_prefix_is_bitwise_equal_to_a_single_run(
    prompt: Prompt,
    tmp_path: Path,
    steps: list[int],
    family: str,
    shared: dict[str, int],
    epochs: int,
) -> None:
    command = ("-m", *SHORT, *family.split())
    status, _, err = prompt(*command)
    assert (status, err) == (0, "")
    assert len(steps) == STEPS * epochs  # each different epoch once
    status, _, err = prompt(*command, "runs_dir=alone", "share=false")
    assert (status, err) == (0, "")
    alone = outcomes(tmp_path / "alone")
    assert_equal(outcomes(tmp_path / "runs"), alone)
    assert {r["inherited"]["epochs"] for r in results(tmp_path / "alone")} == {0}
    assert not (tmp_path / "alone/shared").exists()
    if shared:
        assert inherited(tmp_path / "runs") == shared
    for result in results(tmp_path / "runs"):
        epochs, seconds = result["inherited"]["epochs"], result["inherited"]["seconds"]
        assert (seconds > 0) == (epochs > 0)
        assert seconds <= result["seconds"]["total"]


KILLED = (
    "-m",
    *TINY,
    "save_weights=true",
    "schedule.factors=[1,0.1]",
    "schedule.epochs=[1,1],[2,1]",
    "averaging=none,rna",
)
DIFFERENT_STEPS = 8 * (2 + 2 + 1 + 1)


@pytest.fixture(scope="module")
def undisturbed(swept: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcomes of the sweep's runs, each trained alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = (*KILLED, "share=false", "checkpoint_seconds=1000")
    assert swept(folder, command, "never", 0) == 0
    return outcomes(folder / "runs")


KILLS = [("stepped", 4), ("saved", 1), ("stepped", 20), ("saved", 2), ("stepped", 9)]


@pytest.mark.slow
@pytest.mark.parametrize(("event", "count"), KILLS)
def test_a_sweep_whose_prefix_was_killed_ends_bit_identical(
    swept: Any, tmp_path: Path, event: str, count: int, undisturbed: Any
) -> None:
    """SIGKILL in mid-epoch, right after a prefix is saved, and later."""
    assert swept(tmp_path, KILLED, event, count) == -signal.SIGKILL
    assert swept(tmp_path, KILLED, "never", 0) == 0
    assert_equal(outcomes(tmp_path / "runs"), undisturbed)
    assert len((tmp_path / "steps").read_bytes()) <= DIFFERENT_STEPS + 1  # one was not saved


@pytest.mark.slow
def test_concurrent_sweeps_train_each_prefix_once(
    victims: Any, tmp_path: Path, undisturbed: Any
) -> None:
    """A sweep dies while three others wait for its prefix; another sweep takes over."""
    arguments = (tmp_path, KILLED, "stepped", 4, signal.SIGSTOP)
    first = victims.Process(target=victim.sweep_and_die, args=arguments)
    first.start()
    while not (file := tmp_path / "steps").exists() or len(file.read_bytes()) < 4:
        first.join(0.05)
        assert first.exitcode is None
    arguments = (tmp_path, KILLED, "never", 0)
    others = [victims.Process(target=victim.sweep_and_die, args=arguments) for _ in range(3)]
    for process in others:
        process.start()
    while (tmp_path / "said").read_text().count("training this run; waiting") < len(others):
        others[0].join(0.05)
        assert [process.exitcode for process in others] == [None] * len(others)
    first.kill()
    for process in (first, *others):
        process.join()
    assert {process.exitcode for process in others} == {0}
    assert_equal(outcomes(tmp_path / "runs"), undisturbed)
    assert len(file.read_bytes()) <= DIFFERENT_STEPS + 1


def test_a_run_inherits_the_seconds_of_its_own_averages_only() -> None:
    average = {"error": 5.0, "seconds": {"averaging": 2.0, "evaluation": 3.0}}
    seconds = {"train": 10.0, "evaluation": 1.0, "averaging": 0.1, "observers": 5.0}
    line = {"epoch": 1, "seconds": seconds, "observers": {"g": average}}
    own = adapt_metrics(line, {"average": "g"}, SimpleNamespace(observers={}))
    assert own["seconds"] == {"train": 10.0, "evaluation": 4.0, "averaging": 2.0}
    observed = adapt_metrics(line, {"swa": "g"}, SimpleNamespace(observers={"swa": None}))
    assert observed["seconds"] == seconds | {"averaging": 0.0}


def test_a_later_sweep_with_other_averages_trains_the_prefix_again_once(
    prompt: Prompt, tmp_path: Path, steps: list[int]
) -> None:
    assert prompt("-m", *SHORT, "averaging=phasewise,rna")[0] == 0
    later = ("-m", *SHORT, "averaging=phasewise", "averaging.weights.gamma0=0.5,0.7,0.8")
    steps.clear()
    status, out, err = prompt(*later)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "sweep: 3 finished, 0 finished before"
    assert len(steps) == STEPS * (2 + 3 * 3)
    assert prompt(*later, "runs_dir=alone", "share=false")[0] == 0
    assert_equal(outcomes(tmp_path / "runs"), outcomes(tmp_path / "alone"))


def test_a_preset_may_set_the_averaging(prompt: Prompt, tmp_path: Path, steps: list[int]) -> None:
    (tmp_path / "mine/preset").mkdir(parents=True)
    lines = [
        "# @package _global_",
        "defaults: [demo, _self_]",
        "averaging: {weights: {gamma0: 0.95}}",
    ]
    (tmp_path / "mine/preset/own.yaml").write_text("\n".join(lines))
    values = ("preset=own", "optimizer_state=keep,reset")
    status, _, err = prompt(*SHORT, "-m", "--config-dir", "mine", *values)  # in any order
    assert (status, err) == (0, "")
    assert len(steps) == STEPS * (2 + 3 + 3)


def test_a_prefix_leaves_an_equal_run_as_it_is(prompt: Prompt, tmp_path: Path) -> None:
    """A cell of Table 3 is the same run as the prefix of phase-wise averaging."""
    sgd = (*SHORT, "averaging=none", "schedule.epochs=[2]", "schedule.factors=[1]")
    assert prompt(*sgd)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    files = {path: path.read_bytes() for path in folder.iterdir()}
    status, out, _ = prompt("-m", *SHORT, "averaging=phasewise,rna")
    assert (status, out.splitlines()[-1]) == (0, "sweep: 2 finished, 0 finished before")
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    (prefix,) = (tmp_path / "runs/shared").glob("*/*/*")
    assert prefix.name == folder.name


@pytest.mark.slow
def test_a_later_sweep_with_another_execution_trains_its_own_prefix(
    prompt: Prompt, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-m", *SHORT, "averaging=phasewise,rna")
    assert prompt(*command)[0] == 0
    for folder in tmp_path.glob("runs/*-phasewise*"):
        shutil.rmtree(folder)
    steps.clear()
    # As after an update of torch, in the same folder.
    monkeypatch.setattr(sharing, "execution_of", lambda *_: {"torch": "9.9"})
    status, _, err = prompt(*command)
    assert (status, err) == (0, "")
    assert len(steps) == STEPS * (2 + 3 + 3)


@pytest.mark.slow
def test_a_damaged_prefix_is_trained_again(prompt: Prompt, tmp_path: Path) -> None:
    command = ("-m", *SHORT, "averaging=phasewise,rna")
    prompt(*command)
    expected = outcomes(tmp_path / "runs")
    (prefix,) = tmp_path.glob("runs/shared/*/*/*/checkpoint-*.pt")
    content = bytearray(prefix.read_bytes())
    content[len(content) // 2] ^= 1
    prefix.write_bytes(content)
    for path in tmp_path.glob("runs/*phasewise*/result.json"):
        path.unlink()
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert f"{prefix.relative_to(tmp_path)}: damaged" in out
    assert prefix.with_name(f"{prefix.name}.damaged").exists()
    assert_equal(outcomes(tmp_path / "runs"), expected)


def test_a_run_looks_only_for_the_lengths_that_are_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(sharing, "saved", lambda folder, key, epochs: looked.append(epochs) or [])
    for name in ("one-3", "one-80", "two-80", "one-900001", "one-x", "x"):
        (tmp_path / name).mkdir()
    settings = check(composed(*TINY, "schedule.epochs=[900000,1,1]", f"share.dir={tmp_path}"))
    state: Any = SimpleNamespace(step=17, steps_per_epoch=8)
    folder: Any = SimpleNamespace(restore=lambda state: None)
    Sharing(settings, torch.device("cpu")).restore(state, folder)
    assert looked == [80]


@pytest.mark.slow
def test_a_single_run_starts_from_a_sweeps_prefix(prompt: Prompt) -> None:
    prompt("-m", *SHORT, "averaging=none,phasewise")
    _, out, _ = prompt(*SHORT, "averaging=end")  # the prefix has no such average
    assert "from step 0;" in out
    _, out, _ = prompt(*SHORT, "averaging=phasewise", "schedule.epochs=[2,3,1]")
    assert "from step 8, 2 epochs shared with other runs;" in out
    _, out, _ = prompt(*SHORT, "averaging=none", "evaluation.every=2", "schedule.epochs=[2,3,1]")
    assert "from step 0;" in out  # the prefix was tested at other epochs


def test_runs_of_a_diverged_prefix_report_the_divergence(prompt: Prompt, tmp_path: Path) -> None:
    status, _, err = prompt("-m", *SHORT, "averaging=none,phasewise", "optimizer.lr=1e20")
    assert status == 1
    assert "2 diverged" in err.splitlines()[-1]
    assert [result["status"] for result in results(tmp_path / "runs")] == ["diverged"] * 2
    assert not list(tmp_path.rglob("failure.json"))  # neither runs nor the prefix have failed


def test_runs_finish_if_a_full_disk_prevents_saving_a_prefix(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RunFolder, step: int, state: Any, *rest: Any, **named: Any) -> None:
        if "prefix" in state:
            raise UserError("no space left")
        save(self, step, state, *rest, **named)

    save = RunFolder.save_checkpoint
    monkeypatch.setattr(RunFolder, "save_checkpoint", full)
    status, out, _ = prompt("-m", *SHORT, "averaging=none,phasewise", "checkpoint_seconds=0")
    assert status == 0
    assert "no space left; until then, each run of this prefix trains its epochs" in out
    assert set(inherited(tmp_path / "runs").values()) == {0}
    steps = [path.name[:20] for path in (tmp_path / "runs/shared").rglob("checkpoint-*")]
    assert sorted(steps) == ["checkpoint-000000006", "checkpoint-000000007"]


def test_a_signal_while_a_prefix_is_saved_stops_the_sweep(
    prompt: Prompt, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-m", *SHORT, "averaging=none,phasewise")
    save = Sharing.save

    def interrupted(self: Sharing, *given: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(self, *given)

    with monkeypatch.context() as first:
        first.setattr(Sharing, "save", interrupted)
        status, out, err = prompt(*command)
    assert (status, len(steps)) == (130, STEPS * 2)
    assert "interrupted at the end of a prefix; rerun the same command to resume" in err
    status, out, _ = prompt(*command)
    assert (status, len(steps)) == (0, STEPS * (2 + 3 + 3))
    assert "the first 2 epochs were saved before" in out


@pytest.mark.slow
@pytest.mark.parametrize(("where", "moment"), [(Sharing, "save"), (sharing, "load")])
def test_the_prefix_folder_may_be_deleted_at_any_time(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, moment: str
) -> None:
    meant = getattr(where, moment)

    def removing(*given: Any, **named: Any) -> Any:
        shutil.rmtree(tmp_path / "runs/shared", ignore_errors=True)
        return meant(*given, **named)

    monkeypatch.setattr(where, moment, removing)
    status, out, err = prompt("-m", *SHORT, "averaging=none,rna")
    assert status == 0, err
    assert out.splitlines()[-1].startswith("sweep: 2 finished")


@pytest.mark.slow
def test_sweeps_with_other_averages_do_not_disturb_an_interrupted_prefix(
    prompt: Prompt, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        # Only a run that is training detects the deadline.
        clock = SimpleNamespace(time=lambda: time.time() + 3 * 3600 * (len(steps) >= 3))
        later.setattr(loop, "time", clock)
        later.setattr(sweeper, "time", clock)
        status, _, _ = prompt("-m", *SHORT, "averaging=phasewise,rna", "budget=2h")
    assert (status, len(steps)) == (0, 3)
    assert prompt("-m", *SHORT, "averaging.weights.gamma0=0.5,0.7,0.8")[0] == 0
    assert len(steps) == 3 + STEPS * (2 + 3 * 3)
    assert prompt("-m", *SHORT, "averaging=phasewise,rna")[0] == 0
    assert len(steps) == STEPS * (2 + 3 * 3) + STEPS * (2 + 3 * 2)  # it went on from step 3


@pytest.mark.slow
def test_runs_of_a_failed_prefix_are_trained_alone(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Sharing, *_: Any) -> None:
        if self.settings.share.prefix:
            raise RuntimeError("no prefix today")
        restore(self, *_)

    restore = Sharing.restore
    monkeypatch.setattr(Sharing, "restore", broken)
    status, _, err = prompt("-m", *SHORT, "averaging=phasewise,rna")
    assert status == 1
    assert "noaveraging-seed0" in err
    assert "no prefix today" in err
    # The prefix is not a requested run.
    assert "sweep: 2 finished, 0 finished before; to resume: " in err.splitlines()[-1]
    assert inherited(tmp_path / "runs") == {"phasewise": 0, "phasewise_rna": 0}
