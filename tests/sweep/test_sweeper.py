"""Sweeps on the command line: unfinished runs are trained, and failures are reported."""

import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, Prompt, assert_one_line
from made_cells import TABLE
from sweep.outcomes import assert_equal, outcomes

from phaseavg.sweep.epoch_times import format_duration

SHORT = (*TINY, "schedule.epochs=[1,1,1]", "checkpoint_seconds=1000")


@pytest.mark.slow
def test_a_plain_sweep_skips_finished_runs(prompt: Prompt, tmp_path: Path) -> None:
    command = ("-m", *SHORT, "averaging=none,phasewise")
    prompt(*command, "seed=0")
    before = {path: path.read_bytes() for path in tmp_path.glob("runs/*/result.json")}
    status, out, err = prompt(*command, "seed=0,1,1", "execution.precision=fp32,fp32")
    assert (status, err) == (0, "")
    assert "12 runs requested, 4 unique: 2 finished before, 2 to train" in out
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4
    status, out, _ = prompt(*command, "seed=0", "rerun=true")
    assert (status, out.splitlines()[-1]) == (0, "sweep: 2 finished, 0 finished before")


MISTAKES = [
    ("-m table=t1a,9", "table=9: there is no such option; choices: ablations, all"),
    ("-m table=t1a column=x", "column=x: table=t1a has no such column; choices: gamma0-0.99"),
    ("-m table=t2 dataset=imagenet model=cnn13", "no cell of table=t2 matches"),
    ("-m column=ours", "column: only tables have columns; add table=…"),
    ("-m table=t1a optimizer.lr=0.1,0.2", "optimizer.lr takes one value"),
    ("-m table=t1a averaging=end", "averaging=end: table t1a already sets averaging"),
    ("-m seed=0,-1", "seed=-1: input should be greater than or equal to 0"),
    ("-m model.width=interval(0,1)", "model.width=interval(0,1): must be a list, range"),
    ("-m seed=0,range(1,3)", "seed=0,range(1,3): a list cannot contain a range; list the values"),
    (
        "-m seed=0,1 dataset=cifar100 data_dir=/proc/nope",
        "set another data_dir: all runs need this data set",
    ),
    *(
        (
            f"-m preset=demo seed=0,1 hydra/launcher=local hydra.launcher.runs_per_device={count}",
            f"hydra.launcher.runs_per_device={count}: must be auto or a positive integer",
        )
        for count in ("0", "many")
    ),
    (
        "-m preset=demo schedule.epochs=[1,1,1] execution.precision=fp32,bf16",
        "execution: the requested values give the same run id, digits-cnn13",
    ),
    ("-m preset=demo runs_dir=a,b", "runs_dir: the requested values give the same run id"),
    ("-m preset=demo seed=0,1 hydra.job.chdir=true", "hydra.job.chdir=true: runs are written"),
    ("table=all", "table: only a sweep has this option; add -m"),
]


@pytest.mark.parametrize(("typed", "message"), MISTAKES)
def test_a_mistake_is_reported_in_one_line_before_training(
    prompt: Prompt, tmp_path: Path, typed: str, message: str
) -> None:
    assert_one_line(prompt(*typed.split(), "tracking=none"), message)
    assert not list(tmp_path.iterdir())


def test_a_plan_trains_nothing_and_counts_the_remaining_epochs(
    prompt: Prompt, tmp_path: Path, mine: str
) -> None:
    command = ("--config-dir", mine, "-m", *SHORT, "table=tiny")
    status, out, _ = prompt(*command, "plan=true")
    assert status == 0
    assert not (tmp_path / "runs").exists()
    # Requested, unique and shared epochs; both methods share the first epoch.
    row = r"\| table tiny +\| +3 \| +6 \| +4 \| +0 \| +18 \| +12 \| +10 \| +10 \|"
    assert re.search(row, out)
    assert "not measured" in out
    _, out, _ = prompt(*command, "plan=true", "share=false")
    assert re.search(row.replace("10", "12"), out)
    prompt(*command, "seed=0")
    status, out, _ = prompt(*command, "plan=true")
    assert re.search(r"\| total +\| +3 \| +6 \| +4 \| +2 \| +18 \| +12 \| +10 \| +5 \|", out)
    # By hand: the median seconds per epoch of both runs, times the remaining epochs.
    found = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")]
    took = [result["seconds"]["total"] for result in found]
    assert f"about {format_duration(5 * sum(took) / 2 / 3)} without parallel runs" in out
    assert "2 runs on" in out
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert "6 runs requested, 4 unique: 2 finished before, 2 to train" in out
    assert out.splitlines()[-1] == "sweep: 2 finished, 2 finished before"
    status, out, _ = prompt(*command, "plan=true")
    assert "all runs are finished" in out


def test_a_failed_run_is_recorded_and_the_others_continue(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("-m", *SHORT, "seed=0,1,2")
    with monkeypatch.context() as broken:
        import phaseavg.training.parts as parts

        build, seeds = parts.build, [0, 1, 2]

        def broken_at_seed_1(name: str, *rest: object, **given: object) -> object:
            if name == "schedule" and seeds.pop(0) == 1:
                raise RuntimeError("a part broke")
            return build(name, *rest, **given)

        broken.setattr(parts, "build", broken_at_seed_1)
        status, _, err = prompt(*command)
    assert status == 1
    *_, reason, last = err.splitlines()
    assert re.match(
        r"train\.py: digits-cnn13-sgd-phasewise-seed1-\w+: RuntimeError\('a part", reason
    )
    assert last.startswith(
        "sweep: 2 finished, 0 finished before, 1 failed; to resume: python train.py -m"
    )
    assert last.endswith("'schedule.epochs=[1,1,1]' checkpoint_seconds=1000 seed=0,1,2")
    (failure,) = tmp_path.glob("runs/*seed1*/failure.json")  # though it did not come to its folder
    assert "a part broke" in json.loads(failure.read_text())["error"]
    _, out, _ = prompt(*command, "plan=true")
    assert re.search(
        r"failed in the last attempt:\n\S+seed1\S+: RuntimeError\('a part broke'\)", out
    )
    status, out, err = prompt("-m", *SHORT, "seed=0,1,2,3")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "sweep: 2 finished, 2 finished before"
    assert out.index("-seed3-") < out.index("-seed1-")  # a run that failed before comes last
    assert not failure.exists()


def test_a_failed_sweep_of_reruns_says_what_the_same_command_would_do(prompt: Prompt) -> None:
    status, _, err = prompt("-m", *SHORT, "batch_size=250,1001", "rerun=true")
    assert status == 1
    assert err.splitlines()[-1].endswith("leave out rerun=true, which repeats all runs")
    assert "UserError" not in err  # the sweep has the error itself


def test_runs_with_a_missing_data_set_are_skipped(prompt: Prompt, tmp_path: Path) -> None:
    status, _, err = prompt("-m", *SHORT, "seed=0,1", "dataset=imagenet,digits", "share=false")
    assert status == 1
    message, last = err.splitlines()
    assert message == (
        "train.py: dataset: data_dir=data: imagenet/train must hold a folder of images per class "
        "or tar shards: skipping the 2 runs that need this data set"
    )
    assert last.startswith("train.py: sweep: 2 finished, 0 finished before, 2 failed; to resume: ")
    assert len(list(tmp_path.glob("runs/*"))) == 2


def test_a_diverged_run_counts_as_failed(prompt: Prompt) -> None:
    command = ("-m", *SHORT, "optimizer.lr=1e20,0.1")
    for counts in (
        "1 finished, 0 finished before, 1 diverged",
        "0 finished, 2 finished before, 1 of these",
    ):
        status, _, err = prompt(*command)
        assert status == 1
        assert re.search(r"^train\.py: digits\S+: diverged: the training loss", err, re.MULTILINE)
        assert f"sweep: {counts}" in err.splitlines()[-1]


@pytest.mark.slow
def test_a_run_in_another_process_is_skipped(prompt: Prompt, tmp_path: Path) -> None:
    prompt(*SHORT)
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "result.json").unlink()
    with (folder / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, out, err = prompt("-m", *SHORT, "seed=0,1")
    assert (status, err) == (0, "")
    assert f"{folder.name}: another process is training this run" in out
    assert out.splitlines()[-1] == (
        "sweep: 1 finished, 0 finished before, 1 not run, or training in another process"
    )


@pytest.mark.slow
def test_a_dry_run_of_a_sweep_leaves_nothing(prompt: Prompt, tmp_path: Path) -> None:
    status, out, err = prompt("-m", *SHORT, "seed=0,1", "dry_run=true")
    assert (status, err) == (0, "")
    assert out.count(" of training, at ") == 2
    assert not (tmp_path / "runs").exists()
    status, _, err = prompt("-m", *SHORT, "batch_size=128,1001", "dry_run=true")
    assert status == 1
    assert err.splitlines()[-1] == "train.py: sweep: 1 of 2 jobs would fail; see above"
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_all_launchers_give_the_same_records(
    prompt: Prompt, tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Includes a diverged run, whose error reaches the parent process."""
    broken = "  broken: [averaging=none, optimizer.lr=1e20]\n"
    (tmp_path / "mine/table/tiny.yaml").write_text(
        TABLE.replace("  again: [averaging=none]\n", broken)
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # where worker processes find train.py
    command = ("--config-dir", mine, "-m", *SHORT, "table=tiny", "seed=0")
    scratch = f"hydra.sweep.dir={tmp_path}/scratch"
    last = "sweep: 2 finished, 0 finished before, 1 diverged; to resume: python "

    status, _, err = prompt(*command, "runs_dir=basic")
    assert status == 1
    assert err.splitlines()[-1].startswith(last)

    # In a subprocess, where the job is pickled from __main__.
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", scratch)
    shell = [sys.executable, str(REPOSITORY / "train.py"), *command, *joblib, "runs_dir=joblib"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(last)

    submitit = ("hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1", scratch)
    alone = ("column=ours", "share=false", "runs_dir=submitit")
    status, out, err = prompt(*command, *submitit, *alone)
    assert (status, out.splitlines()[-1]) == (0, "sweep: 1 finished, 0 finished before"), err

    expected = outcomes(tmp_path / "basic")
    assert len(expected) == 3
    assert_equal(outcomes(tmp_path / "joblib"), expected)
    submitted = outcomes(tmp_path / "submitit")
    assert len(submitted) == 1
    assert_equal(submitted, {run_id: expected[run_id] for run_id in submitted})
