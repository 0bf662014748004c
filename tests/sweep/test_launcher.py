"""Parallel runs equal single runs, and resume after a signal without loss."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import victims as victim
from conftest import REPOSITORY, TINY, Prompt
from hydra.core.singleton import Singleton
from joblib import cpu_count
from omegaconf import OmegaConf
from sweep.outcomes import SHORT, assert_equal, inherited, outcomes

from phaseavg.errors import ProcessLost, UserError
from phaseavg.sweep import launcher
from phaseavg.sweep.launcher import slots_for


def processes_in(group: int) -> list[str]:
    """Return the running processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append(path.parent.name)
    return found


LOCAL = ("hydra/launcher=local", "hydra.launcher.runs_per_device=2")


@pytest.mark.slow
def test_parallel_runs_are_bitwise_equal_to_single_runs(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Includes shared prefixes, failing runs and another start method."""
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}")  # where worker processes find train.py
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")  # of new processes; this one has a thread
    command = ("-m", *SHORT, "averaging=none,phasewise", f"hydra.sweep.dir={tmp_path}/scratch")
    status, out, err = prompt(*command, *LOCAL, "batch_size=250,1001")
    assert status == 1
    assert out.count("local: parallel runs: 2 on cpu; threads per run: 1") == 2  # prefixes first
    assert err.splitlines()[-1].startswith("sweep: 2 finished, 0 finished before, 2 failed")
    assert inherited(tmp_path / "runs") == {"noaveraging": 2, "phasewise": 2}
    lines = [line for line in out.splitlines() if "epoch 5/5" in line]
    assert len(lines) == len({line.split(": ")[0] for line in lines}) == 2
    assert all(re.match(r"run [1-4] of 4: epoch 5/5 ", line) for line in lines)
    for path in tmp_path.glob("runs/*/result.json"):
        (made,) = json.loads(path.read_text())["provenance"]
        assert made["execution"]["threads"] == 1

    status, _, err = prompt(*command, "share=false", "runs_dir=alone")
    assert (status, err) == (0, "")
    assert_equal(outcomes(tmp_path / "runs"), outcomes(tmp_path / "alone"))


@pytest.mark.slow
def test_all_runs_save_after_a_signal_and_resume(victims: Any, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes; a scheduler's SIGTERM may reach only the parent."""
    tiny = (*TINY, "schedule.epochs=[100000,1,1]", "checkpoint_seconds=1000", "share=false")
    arguments = ("-m", *tiny, "seed=0,1,2", *LOCAL, f"hydra.sweep.dir={tmp_path}/scratch")

    def epochs() -> dict[str, int]:
        found = tmp_path.glob("runs/*/metrics.jsonl")
        return {path.parent.name: path.read_text().count("\n") for path in found}

    def steps_saved() -> dict[str, int]:
        paths = sorted(tmp_path.glob("runs/*/checkpoint-*.pt"))
        return {path.parent.name: int(path.name.split("-")[1]) for path in paths}

    trained = {}
    for kill, number, status in (
        (os.killpg, signal.SIGINT, 130),
        (os.kill, signal.SIGTERM, 143),
    ):
        process = victims.Process(target=victim.sweep_in_a_group, args=(tmp_path, arguments))
        process.start()
        while sum(n > trained.get(run, 0) for run, n in epochs().items()) < 2:
            process.join(0.05)
            assert process.exitcode is None
        kill(process.pid, number)
        process.join()
        said = (tmp_path / "said").read_text()
        assert process.exitcode == status, said
        assert "sweep: 0 finished, 0 finished before, 3 not run" in said.splitlines()[-2]
        assert len(steps_saved()) == 2  # the third had not begun
        assert all(steps_saved()[run] // 8 == n for run, n in epochs().items())
        assert all(n > trained.get(run, 0) for run, n in epochs().items())
        trained = epochs()
        while processes_in(process.pid):
            time.sleep(0.1)


@pytest.mark.slow
def test_runs_save_and_exit_when_their_sweep_is_killed(victims: Any, tmp_path: Path) -> None:
    tiny = (*TINY, "schedule.epochs=[100000,1,1]", "checkpoint_seconds=1000", "share=false")
    arguments = ("-m", *tiny, "seed=0,1", *LOCAL, f"hydra.sweep.dir={tmp_path}/scratch")
    process = victims.Process(target=victim.sweep_in_a_group, args=(tmp_path, arguments))
    process.start()
    while len(list(tmp_path.glob("runs/*/metrics.jsonl"))) < 2:
        process.join(0.05)
        assert process.exitcode is None
    process.kill()
    process.join()
    while processes_in(process.pid):
        time.sleep(0.1)
    assert len({path.parent for path in tmp_path.glob("runs/*/checkpoint-*.pt")}) == 2


SLOW_START = """\
import os, sys, time
from pathlib import Path

folder = Path(__file__).parent
if any("spawn_main" in argument for argument in sys.orig_argv):
    Path(folder, f"starting-{os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.05)
"""


@pytest.mark.slow
def test_a_signal_while_processes_start_ends_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, REPOSITORY / "train.py", "-m", *TINY, "seed=0,1", *LOCAL],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        while not list(tmp_path.glob("starting-*")):
            time.sleep(0.05)
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGTERM)
        (tmp_path / "go").touch()
        status = process.wait()
    text = (tmp_path / "said").read_text()
    assert status == 143, text
    assert "Traceback" not in text


DEADLY = """\
import os, signal
from phaseavg.data.digits import digits as real

def digits(batch_size, seed, device="cpu", **options):
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(batch_size=batch_size, seed=seed, device=device, **options)
"""


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return options of a sweep whose run with seed 1 kills its process."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{tmp_path}")  # of worker processes
    tiny = (*TINY, "schedule.epochs=[1,1,1]", "share=false", "dataset._target_=deadly.digits")
    return ("-m", *tiny, f"hydra.sweep.dir={tmp_path}/scratch")


@pytest.mark.slow
def test_a_run_with_a_killed_process_is_reported_and_the_others_finish(
    prompt: Prompt, tmp_path: Path, deadly: tuple[str, ...]
) -> None:
    status, _, err = prompt(*deadly, "seed=0,1,2", *LOCAL)
    assert status == 1
    *_, named, last = err.splitlines()
    assert re.match(r"train\.py: \S+-seed1-\w+: the process died: ", named)
    assert last.startswith("sweep: 2 finished, 0 finished before, 1 failed; to resume: python ")
    (failure,) = tmp_path.glob("runs/*/failure.json")
    assert "-seed1-" in failure.parent.name
    assert "the process died" in json.loads(failure.read_text())["error"]


@pytest.mark.slow
def test_a_sweep_resumes_after_joblib_loses_a_process(
    prompt: Prompt, deadly: tuple[str, ...]
) -> None:
    command = (*deadly, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    status, _, err = prompt(*command, "seed=0,1,2")
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith("train.py: the launcher failed: TerminatedWorkerError: ")
    assert last.endswith("; rerun the same command to resume")
    assert prompt(*command, "seed=0,2")[0] == 0


def execution(device: str, threads: int | None) -> Any:
    return OmegaConf.create({"device": device, "threads": threads})


def test_each_gpu_has_its_own_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launcher, "cpu_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    slots = slots_for(execution("auto", None), 2)
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1", "0", "1"]
    assert [slot.threads for slot in slots] == [2] * 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    slots = slots_for(execution("cuda", 3), "auto")
    assert [slot.variables["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["3", "GPU-5a"]
    assert [slot.threads for slot in slots] == [3, 3]
    with pytest.raises(UserError, match=r"cuda:1: .* CUDA_VISIBLE_DEVICES=1"):
        slots_for(execution("cuda:1", None), "auto")


def test_the_number_of_cpu_slots_depends_on_cores_and_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "cpu_count", lambda: 7)
    assert len(slots_for(execution("cpu", 2), "auto")) == 3
    assert len(slots_for(execution("cpu", 8), "auto")) == 1
    assert len(slots_for(execution("cpu", 8), 4)) == 4


def seen(number: int, overrides: Sequence[str]) -> tuple[str, int]:
    """Return the visible GPUs, and the number of processes that would read images."""
    return os.environ["CUDA_VISIBLE_DEVICES"], cpu_count()


@pytest.mark.slow
def test_a_process_sees_only_its_gpu_and_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "train_job", seen)
    slot = launcher.Slot("GPU 6", 1, {"CUDA_VISIBLE_DEVICES": "6"})
    try:
        payload = cloudpickle.dumps((None, None, None, Singleton.get_state()))
        assert slot.run(payload, 0, []) == ("6", 1)
    finally:
        slot.close()


DEADLY_START = """\
import os, signal, sys

if any("spawn_main" in argument for argument in sys.orig_argv):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_killed_while_it_starts_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLY_START)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}")
    payload = bytes(2**20)  # more than a pipe holds
    returned = launcher.Slot("cpu", 1).run(payload, 0, [])
    assert isinstance(returned._return_value, ProcessLost)
