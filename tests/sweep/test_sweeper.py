"""Sweeps at the prompt: what is missing is run, whatever befalls it."""

import fcntl
import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import victims as victim
from conftest import REPOSITORY, TINY, Prompt
from hydra.core.plugins import Plugins

from phaseavg.runs.folder import record_failure
from phaseavg.sweep.outcomes import sorted_out
from phaseavg.training.step import Step

TABLE = """\
title: two methods
seeds: [0, 1]
rows:
  - [dataset=digits, model=cnn13_digits]
columns:
  plain: [averaging=none]
  ours: [averaging=phasewise]
  again: [averaging=none]
"""

SHORT = (*TINY, "schedule.epochs=[1,1,1]", "checkpoint_seconds=1000")


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """Return a folder of configs with a table in it."""
    (tmp_path / "mine/table").mkdir(parents=True)
    (tmp_path / "mine/table/tiny.yaml").write_text(TABLE)
    return str(tmp_path / "mine")


def results(folder: Path) -> dict[str, Any]:
    """Return the outcomes of the runs below a folder by run id, without what depends on time."""
    found = {}
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        timing = ("seconds", "images_per_second", "peak_memory_bytes", "provenance")
        found[path.parent.name] = {
            key: value for key, value in result.items() if not key.endswith(timing)
        }
        inherited = result["inherited"]
        found[path.parent.name]["inherited"] = [s["prefix"] for s in inherited["segments"]]
        lines = path.with_name("metrics.jsonl").read_text().splitlines()
        found[path.parent.name]["metrics"] = [
            {k: v for k, v in json.loads(line).items() if not k.endswith(("seconds", "_second"))}
            for line in lines
        ]
    return found


def test_a_table_is_swept_narrowed_and_continued(prompt: Prompt, tmp_path: Path, mine: str) -> None:
    command = ("--config-dir", mine, "-m", *SHORT, "table=tiny")
    status, out, err = prompt(*command, "column=plain,again", "seed=1")
    assert (status, err) == (0, "")
    assert "2 runs asked for, 1 different ones: 0 there already, 1 to train" in out
    assert out.splitlines()[-1] == "sweep: 1 finished, 0 there already"
    status, out, _ = prompt(*command)
    assert status == 0
    assert "6 runs asked for, 4 different ones: 1 there already, 3 to train" in out
    assert len(re.findall(r"^run \d of 3: ", out, re.MULTILINE)) == 3
    assert out.splitlines()[-1] == "sweep: 3 finished, 1 there already"
    assert len(results(tmp_path / "runs")) == 4
    status, out, _ = prompt(*command)
    assert (status, out.splitlines()[-1]) == (0, "sweep: 0 finished, 4 there already")


def test_a_plain_sweep_goes_the_same_way(prompt: Prompt, tmp_path: Path) -> None:
    command = ("-m", *SHORT, "averaging=none,phasewise")
    prompt(*command, "seed=0")
    before = results(tmp_path / "runs")
    status, out, err = prompt(*command, "seed=0,1,1", "execution.precision=fp32,fp32")
    assert (status, err) == (0, "")
    assert "12 runs asked for, 4 different ones: 2 there already, 2 to train" in out
    after = results(tmp_path / "runs")
    assert before.items() <= after.items()
    assert len(after) == 4
    status, out, _ = prompt(*command, "seed=0", "weights=final")
    assert out.count("finished before, without its weights being kept (force=true repeats it)") == 2
    status, out, _ = prompt(*command, "seed=0", "force=true")
    assert (status, out.splitlines()[-1]) == (0, "sweep: 2 finished, 0 there already")


MISTAKES = [
    ("-m table=9", "table=9: there is no such option; choices: "),
    ("-m table=1a,9", "table=9: there is no such option; choices: all, 1a, 1b, 1c, 1d, 2, 3, 4"),
    (
        "-m table=1a column=cosine",
        "column=cosine: table=1a has no such column; choices: gamma0-0.99",
    ),
    ("-m table=1a model=vgg16", "model=vgg16: table=1a has no such model; choices: wrn28_10"),
    ("-m table=2 dataset=imagenet model=cnn13", "no cell of table=2 has all of these"),
    ("-m column=ours", "column: is a table's; add table=…"),
    ("-m table=1a optimizer.lr=0.1,0.2", "optimizer.lr takes one value"),
    ("-m table=1a averaging=end", "averaging=end: table 1a sets averaging itself"),
    ("-m table=1d model=cnn13 seed=a", "seed='a': "),
    ("-m averaging=none,nothing", "averaging=nothing: there is no such option; choices: end"),
    ("-m seed=0,-1", "seed=-1: input should be greater than or equal to 0"),
    ("-m model.width=interval(0,1)", "model.width=interval(0,1): a sweep takes lists, ranges"),
    ("table=1a", "table: is of a sweep; add -m to run the cells of a table"),
    ("column=ours", "column: is of a sweep; add -m and table=…"),
    ("plan=true", "plan: is of a sweep; add -m, or take dry_run=true"),
]


@pytest.mark.parametrize(("typed", "message"), MISTAKES)
def test_a_mistake_gets_one_line_and_status_2_before_anything_runs(
    prompt: Prompt, tmp_path: Path, typed: str, message: str
) -> None:
    status, _, err = prompt(*typed.split(), "tracking=none")
    assert status == 2
    assert err.startswith("train.py: ")
    assert err.count("\n") == 1, err
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_table_that_is_none_is_named(prompt: Prompt, tmp_path: Path, mine: str) -> None:
    (tmp_path / "mine/table/tiny.yaml").write_text(TABLE.replace("ours:", "'our s':"))
    status, _, err = prompt("--config-dir", mine, "-m", "table=tiny")
    assert status == 2
    assert "train.py: table=tiny: table.columns.our s" in err
    assert err.count("\n") == 1


def test_a_plan_runs_nothing_and_counts_what_is_left(
    prompt: Prompt, tmp_path: Path, mine: str
) -> None:
    command = ("--config-dir", mine, "-m", *SHORT, "table=tiny")
    status, out, _ = prompt(*command, "plan=true")
    assert status == 0
    assert not (tmp_path / "runs").exists()
    # Asked for, and with equal runs merged; of the first epoch both methods have the same.
    row = r"\| table tiny +\| +3 \| +6 \| +4 \| +0 \| +18 \| +12 \| +10 \| +10 \|"
    assert re.search(row, out)
    assert "not measured" in out
    assert "10 epochs whose rate has not been measured" in out
    (hint,) = re.findall(r"^python train.py (.*)$", out, re.MULTILINE)  # how to measure it
    status, told, _ = prompt(*shlex.split(hint))
    assert status == 0
    assert re.search(r"^time +about .* by \d+ steps", told, re.MULTILINE)
    assert not (tmp_path / "runs").exists()
    _, out, _ = prompt(*command, "plan=true", "share=false")
    assert re.search(row.replace("10", "12"), out)
    prompt(*command, "seed=0")
    status, out, _ = prompt(*command, "plan=true")
    assert re.search(r"\| in all +\| +3 \| +6 \| +4 \| +2 \| +18 \| +12 \| +10 \| +5 \|", out)
    # By hand: the median of both runs' seconds per epoch, times the epochs that are left.
    took = [json.loads(p.read_text())["seconds"] for p in tmp_path.glob("runs/*/result.json")]
    assert f"about {5 * (sum(took) / 2 / 3) / 3600:.3g} hours" in out
    assert "2 runs on" in out
    prompt(*command)
    status, out, _ = prompt(*command, "plan=true")
    assert "nothing is left to train" in out
    # Averaging at the end is SGD's trajectory; what is there of it has not carried the average.
    status, out, _ = prompt("-m", *SHORT, "averaging=none,end", "plan=true")
    assert re.search(r"\| in all +\| +\| +2 \| +2 \| +1 \| +6 \| +6 \| +3 \| +3 \|", out)


def test_a_budget_starts_what_fits_and_the_same_command_goes_on(
    prompt: Prompt, tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch is said to take two seconds with one seed, and hours with the other."""
    from phaseavg.sweep.rates import Rates

    monkeypatch.setattr(Rates, "__call__", lambda _, run: 2.0 + 1e5 * run.settings.seed)
    command = ("--config-dir", mine, "-m", *SHORT, "table=tiny", "seed=0,1")
    status, out, err = prompt(*command, "budget=5h", "plan=true")
    assert (status, err) == (0, "")
    assert "of these, 2 runs fit into 5.0 h, and will take about 10 s:\ndigits" in out
    status, out, err = prompt(*command, "budget=5h")
    assert (status, err) == (0, "")
    assert re.search(r"2 of 4 runs fit into the [45].\d h that are left; next are 2 of them", out)
    assert {run_id.split("-")[4] for run_id in results(tmp_path / "runs")} == {"seed0"}
    assert out.splitlines()[-1] == (
        "sweep: 2 finished, 0 there already, 2 not run, or in training by another process; no "
        "more fits into budget=5h, the same command goes on"
    )
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "sweep: 2 finished, 2 there already"
    status, _, err = prompt(*command, "budget=soon")
    assert (status, err) == (
        2,
        "train.py: budget=soon: is no time; write 90s, 25m, 2h or 1h30m\n",
    )


def test_a_sweep_that_is_out_of_time_has_saved_what_it_has_begun(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates promise too much; what is running stops, the rest is not begun, nothing has failed."""
    from phaseavg.sweep.rates import Rates

    monkeypatch.setattr(Rates, "__call__", lambda *_: 0.0)
    now, steps, step = time.time, [], Step.__call__

    def counted(*arguments: Any) -> None:
        step(*arguments)
        steps.append(arguments)

    monkeypatch.setattr(Step, "__call__", counted)
    monkeypatch.setattr(time, "time", lambda: now() + 3 * 3600 * (len(steps) >= 13))
    command = ("-m", *TINY, "seed=0,1", "checkpoint_seconds=1000")
    status, out, err = prompt(*command, "budget=2h")
    assert status == 0
    assert "out of time and saved after step 13 (epoch" in err
    assert re.search(r"out of time, and not begun; the same command goes on", err)
    assert "0 finished, 0 there already, 2 not run" in out.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*/failure.json"))
    assert len(list(tmp_path.glob("runs/*/checkpoint-*.pt"))) == 1
    status, out, err = prompt(*TINY, "stop_at=1", "seed=0")
    assert status == 130
    assert "from step 13;" in out
    assert "out of time and saved after step 14" in err


def test_a_run_that_fails_is_recorded_and_told_and_stops_no_other(
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
        "sweep: 2 finished, 0 there already, 1 failed; to go on: python train.py -m"
    )
    assert last.endswith("'schedule.epochs=[1,1,1]' checkpoint_seconds=1000 seed=0,1,2")
    assert len(results(tmp_path / "runs")) == 2
    (failure,) = tmp_path.glob("runs/*seed1*/failure.json")  # though it did not come to its folder
    assert "a part broke" in json.loads(failure.read_text())["error"]
    _, out, _ = prompt(*command, "plan=true")
    assert re.search(r"failed when last tried:\n\S+seed1\S+: RuntimeError\('a part broke'\)", out)
    status, out, err = prompt(*command)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "sweep: 1 finished, 2 there already"
    assert not failure.exists()


def test_runs_that_failed_when_last_tried_come_last(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("first", "second", "third")}
    settings = {
        n: SimpleNamespace(run_folder=f, places=[f], force=False) for n, f in folders.items()
    }
    runs = {name: SimpleNamespace(settings=one) for name, one in settings.items()}
    record_failure(folders["first"], "its process was ended")
    _, _, missing = sorted_out(runs)
    assert [run.settings.run_folder.name for run in missing] == ["second", "third", "first"]


def test_a_data_set_that_is_missing_is_looked_for_and_told_once(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def missing(*_: Any) -> None:
        looked.append(True)
        raise ValueError("data_dir=data: cifar-100-python/train is missing")

    monkeypatch.setattr("phaseavg.data.cifar.require_files", missing)
    status, _, err = prompt("-m", *SHORT, "seed=0,1,2", "dataset=cifar100")
    assert status == 2
    assert err == (
        "train.py: dataset: data_dir=data: cifar-100-python/train is missing: no run can be "
        "trained without it\n"
    )
    assert len(looked) == 1
    assert not list(tmp_path.iterdir())


def test_runs_whose_data_set_is_there_are_trained_without_the_others(
    prompt: Prompt, tmp_path: Path
) -> None:
    status, _, err = prompt("-m", *SHORT, "seed=0,1", "dataset=imagenet,digits", "share=false")
    assert status == 1
    told, last = err.splitlines()
    assert told == (
        "train.py: dataset: data_dir=data: imagenet/train must hold a folder of images per class: "
        "2 runs cannot be trained without it"
    )
    assert last.startswith("train.py: sweep: 2 finished, 0 there already, 2 failed; to go on: ")
    assert len(list(tmp_path.glob("runs/*"))) == 2


def test_a_run_that_diverges_is_an_outcome_that_counts_as_failed(
    prompt: Prompt, tmp_path: Path
) -> None:
    command = ("-m", *SHORT, "optimizer.lr=1e20,0.1")
    for counts in (
        "1 finished, 0 there already, 1 diverged",
        "0 finished, 2 there already, 1 of these",
    ):
        status, _, err = prompt(*command)
        assert status == 1
        assert re.search(r"^train\.py: digits\S+: diverged: the training loss", err, re.MULTILINE)
        assert f"sweep: {counts}" in err.splitlines()[-1]
    assert len(results(tmp_path / "runs")) == 2


@pytest.mark.parametrize("begun", [False, True])
def test_a_launcher_that_fails_is_told(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Of each run that it was to train, once it had begun; else it is the user's mistake."""

    class Killed:
        def launch(self, *_: object, **__: object) -> None:
            if begun:
                prompt(*SHORT)
            raise OSError("a worker\nwas killed")

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: Killed())
    status, _, err = prompt("-m", *SHORT, "seed=0,1")
    assert status == 1
    failures = list(tmp_path.glob("runs/*/failure.json"))
    if begun:
        assert "sweep: 1 finished, 0 there already, 1 failed" in err.splitlines()[-1]
        (failure,) = failures
        assert "the launcher failed: OSError" in json.loads(failure.read_text())["error"]
    else:
        assert err.count("\n") == 1
        assert "the launcher failed: OSError('a worker" in err
        assert err.endswith("nothing was run\n")
        assert failures == []


def test_a_run_that_another_process_trains_is_left_to_it(prompt: Prompt, tmp_path: Path) -> None:
    prompt(*SHORT)
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "result.json").unlink()
    with (folder / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, out, err = prompt("-m", *SHORT, "seed=0,1")
    assert (status, err) == (0, "")
    assert f"{folder.name}: another process is training it" in out
    assert out.splitlines()[-1] == (
        "sweep: 1 finished, 0 there already, 1 not run, or in training by another process"
    )


def test_a_dry_run_of_a_sweep_leaves_nothing(prompt: Prompt, tmp_path: Path) -> None:
    status, out, err = prompt("-m", *SHORT, "seed=0,1", "dry_run=true")
    assert (status, err) == (0, "")
    assert out.count("measuring a few steps") == 2
    assert not (tmp_path / "runs").exists()
    status, _, err = prompt("-m", *SHORT, "batch_size=128,1001", "dry_run=true")
    assert status == 1
    assert err.splitlines()[-1] == "train.py: sweep: 1 of 2 would fail; see above"
    assert not (tmp_path / "runs").exists()


def test_all_launchers_give_the_same_records(
    prompt: Prompt, tmp_path: Path, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run that diverges, of which the parent process hears."""
    broken = "  broken: [averaging=none, optimizer.lr=1e20]\n"
    (tmp_path / "mine/table/tiny.yaml").write_text(
        TABLE.replace("  again: [averaging=none]\n", broken)
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # where worker processes find train.py
    command = ("--config-dir", mine, "-m", *SHORT, "table=tiny", "seed=0")
    scratch = f"hydra.sweep.dir={tmp_path}/scratch"
    last = "sweep: 2 finished, 0 there already, 1 diverged; to go on: python "

    status, _, err = prompt(*command, "runs_dir=basic")
    assert status == 1
    assert err.splitlines()[-1].startswith(last)

    # Through the shell, where the job is pickled as what __main__ has.
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", scratch)
    shell = [sys.executable, str(REPOSITORY / "train.py"), *command, *joblib, "runs_dir=joblib"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(last)

    submitit = ("hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=1", scratch)
    alone = ("column=ours", "share=false", "runs_dir=submitit")
    status, out, err = prompt(*command, *submitit, *alone)
    assert (status, out.splitlines()[-1]) == (0, "sweep: 1 finished, 0 there already"), err

    found = results(tmp_path / "basic")
    assert len(found) == 3
    assert results(tmp_path / "joblib") == found
    ((run_id, submitted),) = results(tmp_path / "submitit").items()
    assert found[run_id].pop("inherited") != submitted.pop("inherited") == []
    assert submitted == found[run_id]


SEVERAL = ("-m", *SHORT, "averaging=none,end,phasewise", "checkpoint_seconds=0")


def test_a_sweep_killed_at_five_random_moments_ends_as_if_nothing_had_happened(
    victims: Any, tmp_path: Path
) -> None:
    """By SIGKILL, anywhere in 3 runs; each start is the same command."""

    def swept(name: str, event: str, count: int) -> int:
        arguments = (tmp_path / name, SEVERAL, event, count)
        process = victims.Process(target=victim.sweep_and_die, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    assert swept("undisturbed", "never", 0) == 0
    moments = random.Random(0)
    for _ in range(5):  # of more than a million calls that all runs take
        assert swept("killed", "called", moments.randrange(1, 200_000)) == -signal.SIGKILL
    assert swept("killed", "never", 0) == 0
    expected = results(tmp_path / "undisturbed/runs")
    assert len(expected) == 3
    assert results(tmp_path / "killed/runs") == expected


def test_ctrl_c_and_sigterm_stop_a_sweep_which_goes_on(victims: Any, tmp_path: Path) -> None:
    arguments = ("-m", *TINY, "seed=0,1", "checkpoint_seconds=1000")

    def swept(*signalled: Any) -> int:
        arguments_and_event = (tmp_path, arguments, *signalled)
        process = victims.Process(target=victim.sweep_and_die, args=arguments_and_event)
        process.start()
        process.join()
        return process.exitcode

    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        assert swept("stepped", 13, number) == status
        said = (tmp_path / "said").read_text()
        assert "sweep: 0 finished, 0 there already, 2 not run, or in training" in said
    assert swept("never", 0) == 0
    said = (tmp_path / "said").read_text()
    assert said.count(" from step 0;") == 2  # the first run's first start, and the second run's
    assert said.splitlines()[-1] == "sweep: 2 finished, 0 there already"
