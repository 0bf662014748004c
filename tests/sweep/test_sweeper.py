"""Sweeps on the command line: unfinished runs are trained, and failures are reported."""

import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, TINY, Prompt
from hydra.core.plugins import Plugins
from made_cells import TABLE
from sweep.test_sharing import without_times

from phaseavg.runs.folder import record_failure
from phaseavg.sweep.epoch_times import format_duration
from phaseavg.sweep.outcomes import classify_runs

SHORT = (*TINY, "schedule.epochs=[1,1,1]", "checkpoint_seconds=1000")


def texts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("*/result.json"))]


def configs(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("*/result.json"))
    return [yaml.safe_load(path.with_name("config.yaml").read_text()) for path in paths]


def results(folder: Path) -> dict[str, Any]:
    """Return the results of the runs in a folder by run id, without times."""
    found = {}
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        segments = result["inherited"]["segments"]
        lines = path.with_name("metrics.jsonl").read_text().splitlines()
        found[path.parent.name] = without_times(result) | {
            "inherited": [segment["prefix"] for segment in segments],
            "metrics": [without_times(json.loads(line)) for line in lines],
        }
    return found


@pytest.mark.slow
def test_a_table_is_swept_in_two_parts(prompt: Prompt, tmp_path: Path, mine: str) -> None:
    command = ("--config-dir", mine, "-m", *SHORT, "table=tiny")
    status, out, err = prompt(*command, "column=plain,again", "seed=1")
    assert (status, err) == (0, "")
    assert "2 runs requested, 1 unique: 0 finished before, 1 to train" in out
    assert out.splitlines()[-1] == "sweep: 1 finished, 0 finished before"
    status, out, _ = prompt(*command)
    assert status == 0
    assert "6 runs requested, 4 unique: 1 finished before, 3 to train" in out
    assert len(re.findall(r"^run \d of 3: ", out, re.MULTILINE)) == 3
    assert out.splitlines()[-1] == "sweep: 3 finished, 1 finished before"
    assert len(results(tmp_path / "runs")) == 4
    status, out, _ = prompt(*command)
    assert (status, out.splitlines()[-1]) == (0, "sweep: 0 finished, 4 finished before")


@pytest.mark.slow
def test_a_plain_sweep_skips_finished_runs(prompt: Prompt, tmp_path: Path) -> None:
    command = ("-m", *SHORT, "averaging=none,phasewise")
    prompt(*command, "seed=0")
    before = results(tmp_path / "runs")
    status, out, err = prompt(*command, "seed=0,1,1", "execution.precision=fp32,fp32")
    assert (status, err) == (0, "")
    assert "12 runs requested, 4 unique: 2 finished before, 2 to train" in out
    after = results(tmp_path / "runs")
    assert before.items() <= after.items()
    assert len(after) == 4
    status, out, _ = prompt(*command, "seed=0", "rerun=true")
    assert (status, out.splitlines()[-1]) == (0, "sweep: 2 finished, 0 finished before")


MISTAKES = [
    ("-m table=t9", "table=t9: there is no such option; choices: "),
    ("-m table=t1a,9", "table=9: there is no such option; choices: ablations, all"),
    (
        "-m table=t1a column=cosine",
        "column=cosine: table=t1a has no such column; choices: gamma0-0.99",
    ),
    ("-m table=t1a model=vgg16", "model=vgg16: table=t1a has no such model; choices: wrn28_10"),
    ("-m table=t2 dataset=imagenet model=cnn13", "no cell of table=t2 matches"),
    ("-m column=ours", "column: only tables have columns; add table=…"),
    ("-m table=t1a optimizer.lr=0.1,0.2", "optimizer.lr takes one value"),
    ("-m table=t1a averaging=end", "averaging=end: table t1a already sets averaging"),
    ("-m table=t1a,t1b dataset=svhn", "dataset=svhn: table=t1a,t1b has no such dataset"),
    ("-m table=t1d model=cnn13 seed=a", "seed='a': "),
    ("-m averaging=none,nothing", "averaging=nothing: there is no such option; choices: end"),
    ("-m seed=0,-1", "seed=-1: input should be greater than or equal to 0"),
    ("-m model.width=interval(0,1)", "model.width=interval(0,1): must be a list, range"),
    ("table=t1a", "table: only a sweep has this option; add -m"),
    ("column=ours", "column: only a sweep has this option; add -m"),
    ("plan=true", "plan: only a sweep has this option; add -m"),
]


@pytest.mark.parametrize(("typed", "message"), MISTAKES)
def test_a_mistake_is_reported_in_one_line_before_training(
    prompt: Prompt, tmp_path: Path, typed: str, message: str
) -> None:
    status, _, err = prompt(*typed.split(), "tracking=none")
    assert status == 2
    assert err.startswith("train.py: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert not list(tmp_path.iterdir())


def test_an_invalid_table_is_reported(prompt: Prompt, tmp_path: Path, mine: str) -> None:
    (tmp_path / "mine/table/tiny.yaml").write_text(TABLE.replace("ours:", "'our s':"))
    status, _, err = prompt("--config-dir", mine, "-m", "table=tiny")
    assert status == 2
    assert "train.py: table=tiny: table.columns.our s" in err
    assert err.count("\n") == 1


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
    took = [r["seconds"]["total"] for r in map(json.loads, texts(tmp_path / "runs"))]
    assert f"about {format_duration(5 * sum(took) / 2 / 3)} without parallel runs" in out
    assert "2 runs on" in out
    prompt(*command)
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
    assert len(results(tmp_path / "runs")) == 2
    (failure,) = tmp_path.glob("runs/*seed1*/failure.json")  # though it did not come to its folder
    assert "a part broke" in json.loads(failure.read_text())["error"]
    _, out, _ = prompt(*command, "plan=true")
    assert re.search(
        r"failed in the last attempt:\n\S+seed1\S+: RuntimeError\('a part broke'\)", out
    )
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "sweep: 1 finished, 2 finished before"
    assert not failure.exists()


def test_runs_that_failed_before_come_last(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("first", "second", "third")}
    settings = {
        n: SimpleNamespace(run_folder=f, places=[f], rerun=False) for n, f in folders.items()
    }
    runs = {name: SimpleNamespace(settings=one) for name, one in settings.items()}
    record_failure(folders["first"], "its process was ended")
    _, _, missing = classify_runs(runs)
    assert [run.settings.run_folder.name for run in missing] == ["second", "third", "first"]


def test_a_missing_data_set_is_checked_and_reported_once(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []

    def missing(*_: Any) -> None:
        checks.append(True)
        raise ValueError("data_dir=data: CIFAR100 is missing or damaged")

    monkeypatch.setattr("phaseavg.data.cifar.load_or_download", missing)
    status, _, err = prompt("-m", *SHORT, "seed=0,1,2", "dataset=cifar100")
    assert status == 2
    assert err == (
        "train.py: dataset: data_dir=data: CIFAR100 is missing or damaged: all runs need "
        "this data set\n"
    )
    assert len(checks) == 1
    assert not list(tmp_path.iterdir())


def test_runs_with_a_missing_data_set_are_skipped(prompt: Prompt, tmp_path: Path) -> None:
    status, _, err = prompt("-m", *SHORT, "seed=0,1", "dataset=imagenet,digits", "share=false")
    assert status == 1
    message, last = err.splitlines()
    assert message == (
        "train.py: dataset: data_dir=data: imagenet/train must hold a folder of images per class: "
        "skipping the 2 runs that need this data set"
    )
    assert last.startswith("train.py: sweep: 2 finished, 0 finished before, 2 failed; to resume: ")
    assert len(list(tmp_path.glob("runs/*"))) == 2


def test_a_diverged_run_counts_as_failed(prompt: Prompt, tmp_path: Path) -> None:
    command = ("-m", *SHORT, "optimizer.lr=1e20,0.1")
    for counts in (
        "1 finished, 0 finished before, 1 diverged",
        "0 finished, 2 finished before, 1 of these",
    ):
        status, _, err = prompt(*command)
        assert status == 1
        assert re.search(r"^train\.py: digits\S+: diverged: the training loss", err, re.MULTILINE)
        assert f"sweep: {counts}" in err.splitlines()[-1]
    assert len(results(tmp_path / "runs")) == 2


def test_a_launcher_that_fails_ends_the_sweep_in_one_line(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed:
        def launch(self, *_: object, **__: object) -> None:
            raise OSError("a worker\nwas killed")

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: Killed())
    status, _, err = prompt("-m", *SHORT, "seed=0,1")
    assert status == 1
    assert err == (
        "train.py: the launcher failed: OSError: a worker was killed; rerun the same command to "
        "resume\n"
    )
    assert not list(tmp_path.iterdir())


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

    found = results(tmp_path / "basic")
    assert len(found) == 3
    assert results(tmp_path / "joblib") == found
    ((run_id, submitted),) = results(tmp_path / "submitit").items()
    assert found[run_id].pop("inherited") != submitted.pop("inherited") == []
    assert submitted == found[run_id]


SEVERAL = ("-m", *SHORT, "averaging=none,end,phasewise", "checkpoint_seconds=0")
