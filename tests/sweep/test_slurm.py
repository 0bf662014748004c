"""Sweeps on a real Slurm cluster with two nodes on this host (`make test-slurm`)."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY
from sweep.outcomes import assert_equal, outcomes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]

LONG = (*TINY, "checkpoint_seconds=1000", "save_weights=true")
TWELVE = (
    *(*LONG, "schedule.epochs=[300,100,50]", "dataset._target_=slow.SlowDigits"),
    *("averaging=none,phasewise,uniform,end", "seed=0,1,2", "execution.threads=1"),
)
"""Twelve runs: for each seed, a prefix of 300 epochs, and one of 450 that starts from it."""

SLURM = ("hydra/launcher=slurm", "hydra.launcher.timeout_min=50")

SLOW = """
import time
from pathlib import Path

from phaseavg.data import ResidentImages, digits


class SlowDigits(ResidentImages):
    def __init__(self, batch_size, seed, device, **options):
        self.__dict__ = vars(digits(batch_size, seed, device=device, **options))

    def draws(self, first_step, last_step):
        for draw in super().draws(first_step, last_step):
            if not Path("go").exists():
                time.sleep(0.1)
            yield draw
"""
"""A data set of which a batch takes 0.1 s, until there is a file `go`."""


def until(what: Callable[[], object]) -> None:
    """Wait until a condition is true, or until the test's timeout."""
    while not what():
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Callable[..., str]]:
    """Start Slurm; yield a function that runs its commands."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("state", "spool/n1", "spool/n2", "munge"):
        (folder / name).mkdir(parents=True)
    text = (Path(__file__).parent / "slurm.conf").read_text()
    host = socket.gethostname().partition(".")[0]
    config = folder / "slurm.conf"
    config.write_text(text.replace("DIR", str(folder)).replace("HOST", host))
    (folder / "munge/key").write_bytes(os.urandom(128))
    (folder / "munge/key").chmod(0o400)
    for path in (folder / "munge", folder / "munge/key"):
        shutil.chown(path, "munge", "munge")
    munge = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    options = [f"--{name}={folder}/munge/{file}" for name, file in munge.items()]
    options += [f"--log-file={folder}/munge/log", "--foreground"]
    environment = {**os.environ, "SLURM_CONF": str(config)}

    def call(*command: str) -> str:
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    def idle() -> bool:
        try:
            return set(call("sinfo", "--noheader", "--format=%t").split()) == {"idle"}
        except subprocess.CalledProcessError:
            return False

    with ExitStack() as stack:
        for command in (
            ["runuser", "-u", "munge", "--", "munged", *options],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "n1"],
            ["slurmd", "-D", "-N", "n2"],
        ):
            if command[0] == "slurmctld":
                until((folder / "munge/socket").exists)
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
        until(idle)
        call.environment = environment  # type: ignore[attr-defined]
        yield call
        call("scancel", "--user", "root")
        until(lambda: not call("squeue", "--noheader"))
    shutil.rmtree(folder, ignore_errors=True)


class Sweep:
    """A process that runs `train.py -m …`, with its output so far."""

    def __init__(self, folder: Path, slurm: Callable[..., str], *options: str) -> None:
        self.folder = folder
        self.output = folder / f"said-{len(list(folder.glob('said-*')))}"
        command = [sys.executable, str(REPOSITORY / "train.py"), "-m", *options]
        with self.output.open("w") as stream:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**slurm.environment, "PYTHONPATH": str(folder)},  # type: ignore[attr-defined]
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def until(self, what: Callable[[], object]) -> None:
        """Wait until a condition is true; fail if the sweep has ended."""
        while not what():
            assert self.process.poll() is None, self.said
            time.sleep(0.2)

    def job(self, run: str) -> tuple[str, Path]:
        """Return the job id and the folder of a run or prefix, once it trains.

        Args:
            run: a part of its job's name, as a regular expression.
        """
        pattern = rf"^({run}-\w+): Slurm job (\d+),"
        self.until(lambda: re.search(pattern, self.said, re.MULTILINE))
        name, number = re.findall(pattern, self.said, re.MULTILINE)[-1]
        run_id = name.removeprefix("prefix-")
        place = f"runs/shared/*/*/{run_id}" if name != run_id else f"runs/{run_id}"
        self.until(lambda: list(self.folder.glob(f"{place}/metrics.jsonl")))
        (folder,) = self.folder.glob(place)
        self.until(lambda: epochs(folder))
        return number, folder


def epochs(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_text().count("\n")


def saved(folder: Path) -> int:
    return max((int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*.pt")), default=0)


def test_a_sweep_with_cancelled_requeued_and_preempted_jobs(
    slurm: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    options = (*TWELVE, *SLURM)
    sweep = Sweep(tmp_path, slurm, *options)
    cancelled, folder = sweep.job(r"prefix-\S+-seed0")
    slurm("scancel", cancelled)
    requeued, _ = sweep.job(r"prefix-\S+-seed1")
    slurm("scontrol", "requeue", requeued)
    preempted, other = sweep.job(r"prefix-\S+-seed2")
    node = slurm("squeue", "--noheader", "--format=%N", "--jobs", preempted).strip()
    slurm("sbatch", "--partition=urgent", f"--nodelist={node}", "--output=/dev/null", "--wrap=:")
    sweep.until(lambda: "waiting for Slurm" in (tmp_path / log_of(preempted)).read_text())
    assert saved(other)
    (tmp_path / "go").touch()
    sweep.process.wait()

    last = sweep.said.splitlines()[-1]
    assert sweep.process.returncode == 1
    # The cancelled job trained the prefix of seed 0, from which four runs start.
    assert "sweep: 8 finished, 0 finished before, 4 not run" in last
    assert re.search(rf"{folder.name}: interrupted, saved after step [\d,]+: ", sweep.said)
    assert f"its Slurm job {cancelled} ended without a result (state CANCELLED)" in sweep.said
    assert saved(folder)
    assert not list(tmp_path.glob("runs/*/failure.json"))

    again = Sweep(tmp_path, slurm, *options)
    again.process.wait()
    assert again.process.returncode == 0, again.said
    assert again.said.splitlines()[-1] == "sweep: 4 finished, 8 finished before"
    for path in tmp_path.glob("runs/*/result.json"):
        assert json.loads(path.read_text())["inherited"]["epochs"] >= 300
    log = "".join(path.read_text() for path in tmp_path.glob("runs/.submitit/*/*.out"))
    assert len(re.findall(r"from step 0;", log)) == 3  # each prefix is trained once

    alone = Sweep(tmp_path, slurm, *TWELVE, "runs_dir=alone", "hydra/launcher=local")
    assert alone.process.wait() == 0, alone.said
    assert_equal(outcomes(tmp_path / "runs"), outcomes(tmp_path / "alone"))


def test_a_run_at_its_time_limit_is_saved_requeued_and_not_failed(
    slurm: Callable[..., str], tmp_path: Path
) -> None:
    options = (*LONG, "schedule.epochs=[900000,1,1]", "hydra/launcher=slurm", "seed=0")
    # Slurm's warning comes up to a minute early. The second one ends the sweep.
    limits = ("timeout_min=3", "signal_delay_s=30", "max_num_timeout=1")
    sweep = Sweep(tmp_path, slurm, *options, *(f"hydra.launcher.{x}" for x in limits))
    job, folder = sweep.job(r"digits-\S+-phasewise-seed0")
    assert slurm("squeue", "--noheader", "--format=%j", "--jobs", job).strip() == folder.name
    sweep.process.wait()
    assert sweep.process.returncode == 1
    assert re.search(rf"{folder.name}: out of time after step \d+ ", sweep.said)
    assert "sweep: 0 finished, 0 finished before, 1 interrupted; to resume" in sweep.said
    assert saved(folder) >= 8 * epochs(folder)
    assert not (folder / "failure.json").exists()
    log = (tmp_path / log_of(job)).read_text()
    assert log.count("Requeued job") == 1
    first, second = map(int, re.findall(r"from step (\d+);", log))
    assert first == 0 < second < saved(folder)


def test_a_failed_job_reports_its_log(slurm: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("def digits(**_):\n    raise SystemExit(3)\n")
    options = (*LONG, *SLURM, "seed=0", "dataset._target_=deadly.digits")
    sweep = Sweep(tmp_path, slurm, *options)
    sweep.process.wait()
    assert sweep.process.returncode == 1
    assert "ended without a result (state FAILED); log: " in sweep.said
    assert "1 failed" in sweep.said.splitlines()[-1]


def log_of(job: str) -> str:
    return f"runs/.submitit/{job}/{job}_0_log.out"
