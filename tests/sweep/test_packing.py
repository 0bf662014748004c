"""Several runs at a time: each is the run alone, and a signal costs none of them anything."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import victims as victim
from conftest import REPOSITORY, TINY, Prompt
from sweep.test_sharing import SHORT, assert_equal, inherited, outcomes

from phaseavg.errors import UserError
from phaseavg.sweep import packing, service
from phaseavg.sweep.packing import CONTEXT_BYTES, Needs, best
from phaseavg.sweep.service import Card, multi_process_service


def processes_in(group: int) -> list[str]:
    """Return the processes of a process group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append(path.parent.name)
    return found


PACKED = ("hydra/launcher=packed", "hydra.launcher.runs_at_once=2")
GIGABYTE = 10**9


def test_each_run_of_a_packed_sweep_is_the_run_alone_bit_by_bit(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a shared trajectory, beside runs that fail, where processes begin otherwise."""
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}")  # where worker processes find train.py
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")  # of new processes; this one has a thread
    command = ("-m", *SHORT, "averaging=none,phasewise", f"hydra.sweep.dir={tmp_path}/scratch")
    status, out, err = prompt(*command, *PACKED, "batch_size=250,1001")
    assert status == 1
    assert out.count("packed: 2 runs at once") == 2  # trajectories; what goes on from there
    assert err.splitlines()[-1].startswith("sweep: 2 finished, 0 finished before, 2 failed")
    assert inherited(tmp_path / "runs") == {"noaveraging": 0, "phasewise": 2}
    lines = [line for line in out.splitlines() if "epoch 5/5" in line]
    assert len(lines) == len({line.split(": ")[0] for line in lines}) == 2
    assert all(re.match(r"run [1-4] of 4: epoch 5/5 ", line) for line in lines)
    for path in tmp_path.glob("runs/*/result.json"):
        (made,) = json.loads(path.read_text())["provenance"]
        assert made["execution"]["threads"] == 1

    status, _, err = prompt(*command, "share=false", "runs_dir=alone")
    assert (status, err) == (0, "")
    assert_equal(outcomes(tmp_path / "runs"), outcomes(tmp_path / "alone"))


def test_a_signal_makes_all_runs_save_and_the_same_command_goes_on(
    victims: Any, tmp_path: Path
) -> None:
    """Ctrl-C reaches all processes, the SIGTERM of a scheduler maybe only the first."""
    tiny = (*TINY, "schedule.epochs=[100000,1,1]", "checkpoint_seconds=1000", "share=false")
    arguments = ("-m", *tiny, "seed=0,1,2", *PACKED, f"hydra.sweep.dir={tmp_path}/scratch")

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
        while processes_in(process.pid):  # joblib's own helper is the last to go
            time.sleep(0.1)


DEADLY = """\
import os, signal
from phaseavg.data.digits import digits as real

def digits(batch_size, seed, device="cpu", **options):
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(batch_size=batch_size, seed=seed, device=device, **options)
"""


@pytest.mark.parametrize("launcher", [PACKED, ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_a_run_whose_process_is_killed_is_named_and_the_others_finish(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: tuple[str, str]
) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}:{tmp_path}")  # of worker processes
    tiny = (*TINY, "schedule.epochs=[1,1,1]", "share=false", "dataset._target_=deadly.digits")
    command = ("-m", *tiny, "seed=0,1,2", *launcher, f"hydra.sweep.dir={tmp_path}/scratch")
    status, _, err = prompt(*command)
    assert status == 1
    *_, named, last = err.splitlines()
    assert re.match(r"train\.py: \S+-seed1-\w+: its process was ended by the system", named)
    assert last.startswith("sweep: 2 finished, 0 finished before, 1 failed; to resume: python ")
    (failure,) = tmp_path.glob("runs/*/failure.json")
    assert "-seed1-" in failure.parent.name
    assert "ended by the system" in json.loads(failure.read_text())["error"]


@pytest.mark.parametrize("value", ["0", "many", "1.5", "true"])
def test_a_wrong_number_of_runs_is_one_line(prompt: Prompt, tmp_path: Path, value: str) -> None:
    launcher = ("hydra/launcher=packed", f"hydra.launcher.runs_at_once={value}")
    status, _, err = prompt("-m", *TINY, "seed=0,1", *launcher)
    assert status == 2
    assert err.lower() == (
        f"train.py: hydra.launcher.runs_at_once={value}: choices: auto, or a number from 1 on\n"
    )
    assert not (tmp_path / "runs").exists()


ROWS = [  # of a GPU of 10 GB, a part of which each process takes for itself
    {
        **{"network": network, "runs": runs, "service": service},
        **{"images_per_second": rate * (1 + service * (runs == 2)), "peak_memory_bytes": peak},
    }
    for service in (True, False)
    for network, peak, rates in (
        ("cnn13", GIGABYTE, {1: 100.0, 2: 180.0, 3: 210.0, 4: 190.0, 8: 400.0}),
        ("resnet34", 3 * GIGABYTE, {1: 50.0, 2: 60.0, 4: 90.0}),
    )
    for runs, rate in rates.items()
]


def test_what_was_measured_with_the_service_counts_where_there_is_one(
    calls: Callable[..., list[str]],
) -> None:
    assert packing.fastest(ROWS, "cnn13", 10 * GIGABYTE) == 3
    calls("nothing")  # a service is installed
    assert packing.fastest(ROWS, "cnn13", 10 * GIGABYTE) == 2


@pytest.mark.parametrize(
    ("networks", "free", "expected"),
    [
        (["cnn13"], 3 * (GIGABYTE + CONTEXT_BYTES), (3, "for a GPU")),
        (["cnn13"], 3 * (GIGABYTE + CONTEXT_BYTES) - 1, (2, "for a GPU")),
        (["cnn13"], 10 * GIGABYTE, (3, "for a GPU")),  # eight do not fit
        (["cnn13"], GIGABYTE, (1, "for a GPU")),
        (["cnn13", "resnet34"], 10 * GIGABYTE, (2, "for a GPU")),
        (
            ["vgg16"],
            10 * GIGABYTE,
            (2, "for a GPU; vgg16 not measured there, which make bench-gpu does"),
        ),
    ],
)
def test_as_many_runs_as_train_most_images_and_fit_into_the_memory(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    networks: list[str],
    free: int,
    expected: tuple[int, str],
) -> None:
    path = tmp_path / "gpu-packing.json"
    path.write_text(json.dumps({"machine": {"device_name": "a GPU"}, "rounds": {"packing": ROWS}}))
    monkeypatch.setattr(packing, "MEASURED", path)
    monkeypatch.setattr(packing, "card", lambda *_: Card("a GPU", free))
    assert best([Needs(network, "cuda", 4) for network in networks]) == expected


def test_a_gpu_without_measurement_gets_two_and_a_cpu_what_its_cores_are_enough_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packing, "MEASURED", tmp_path / "none.json")
    monkeypatch.setattr(packing, "card", lambda *_: Card("another GPU", GIGABYTE))
    monkeypatch.setattr(packing, "cpu_count", lambda: 7)
    number, why = best([Needs("cnn13", "cuda:1", 1)])
    assert (number, why.partition(";")[0]) == (2, "for another GPU")
    assert best([Needs("cnn13", "cpu", 2)])[0] == 3
    assert best([Needs("cnn13", "cpu", 2), Needs("resnet34", "cpu", 8)])[0] == 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that puts an `nvidia-cuda-mps-control` on the path, and what it was told.

    Before each call is the folder of its pipes. Called with words, it fails where it is told these.
    """
    log, program = tmp_path / "calls", tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)

    def called(*fails: str) -> list[str]:
        if fails:
            cases = "".join(f'"{words}") echo no >&2; exit 1;;\n' for words in fails)
            program.write_text(
                f"""#!/bin/sh
                words="$*$(cat)"
                echo "${{CUDA_MPS_PIPE_DIRECTORY##*/}} $words" >> {log}
                case "$words" in\n{cases}esac"""
            )
            program.chmod(0o755)
        return log.read_text().splitlines() if log.exists() else []

    return called


def test_the_service_runs_for_as_long_as_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: Callable[..., list[str]]
) -> None:
    tried = []
    monkeypatch.setattr(service, "card", lambda device, seen: tried.append((device, seen)))
    calls("get_server_list")
    with pytest.raises(KeyboardInterrupt), multi_process_service("cuda:1", tmp_path) as there:
        assert there
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "pipe")
        assert os.environ["CUDA_MPS_LOG_DIRECTORY"] == str(tmp_path / "log")
        assert calls() == [" get_server_list", "pipe -d"]
        raise KeyboardInterrupt
    assert calls()[2:] == ["pipe quit"]
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    ((device, seen),) = tried
    assert (device, seen["CUDA_MPS_PIPE_DIRECTORY"]) == ("cuda:1", str(tmp_path / "pipe"))


def test_a_service_that_is_there_already_is_used_and_left_alone(
    tmp_path: Path, calls: Callable[..., list[str]]
) -> None:
    calls("what nobody says")
    with multi_process_service("cuda", tmp_path) as there:
        assert there
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert calls() == [" get_server_list"]


@pytest.mark.parametrize("failing", ["the daemon", "its server", "nothing is installed"])
def test_without_the_service_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    calls: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    failing: str,
) -> None:
    def unusable(*_: Any) -> None:
        raise UserError("no server")

    monkeypatch.setattr(service, "card", unusable)
    if failing != "nothing is installed":
        calls("get_server_list", *["-d"] * (failing == "the daemon"))
    with multi_process_service("cuda", tmp_path) as there:
        assert not there
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "so runs take turns on the GPU" in out
    if failing == "its server":
        assert out.endswith("no server\n")
        assert calls()[-1] == "pipe quit"
