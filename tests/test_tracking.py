"""W&B mirrors a run completely after any failure, and a run never depends on W&B."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import victims as victim
import yaml
from conftest import REPOSITORY, TINY, Compose, Prompt, in_a_victim, result_of, untimed

import train as train_script
from phaseavg import tracking
from phaseavg.errors import UserError
from phaseavg.identity import group_id, run_id
from phaseavg.runs.record import flatten
from phaseavg.tracking import WandB
from phaseavg.training import loop

TRACKED = (*TINY, "tracking=wandb", "tracking.mode=offline")
SECRET = "0123456789abcdef" * 2 + "secretly"  # the length of a W&B key


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if name != "WANDB_SERVICE":  # the W&B service of this process
            monkeypatch.delenv(name)
    monkeypatch.setattr("phaseavg.tracking.INIT_SECONDS", 1000.0)  # however slow the machine


def test_if_wandb_cannot_start_one_line_has_the_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compose_settings: Compose,
) -> None:
    started = {}

    def init(**given: Any) -> None:
        started.update(given, environment=dict(os.environ))
        raise OSError("\n the network is gone\nTry again.")

    stand_in = SimpleNamespace(init=init, Settings=dict, teardown=lambda exit_code: None)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    for name in ("WANDB_ERROR_REPORTING", "WANDB_LOGIN_TIMEOUT"):
        monkeypatch.setenv(name, "")  # to be restored
        monkeypatch.delenv(name)
    with WandB(compose_settings(*TINY).recipe(), {}, [], dir=tmp_path) as mirror:
        mirror.log({"epoch": 1})
    mirror.finish({"status": "finished"})
    said = capsys.readouterr().err
    assert said.startswith("train.py: W&B failed (OSError: the network is gone Try again.)")
    assert said.count("\n") == 1
    assert started["settings"]["init_timeout"] == tracking.INIT_SECONDS
    assert started["environment"]["WANDB_ERROR_REPORTING"] == "false"
    assert int(started["environment"]["WANDB_LOGIN_TIMEOUT"]) == tracking.INIT_SECONDS


def test_the_variable_of_wandb_sets_the_mode(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compose_settings("preset=demo").tracking["mode"] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert compose_settings("preset=demo").tracking["mode"] == "disabled"
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    with pytest.raises(UserError, match=r"tracking.mode='nonsense': .*'offline'"):
        compose_settings("preset=demo")


def test_a_run_of_tables_is_named_after_its_first_cell_and_tagged_with_all() -> None:
    digits = {"dataset": {"_target_": "data.digits"}, "model": {"_target_": "models.CNN13"}}
    methods = {"optimizer": {"_target_": "optim.SGD"}, "averaging": {"_target_": "a.Phasewise"}}
    recipe = {**digits, **methods, "seed": 7}
    long = "mine digits cnn13 " + "x" * 200
    cells = ["1a cifar100 cnn13 gamma0-0.9", "1c cifar100 cnn13 phase-wise", long]
    labels = WandB(recipe, {}, [], cells=cells).labels()
    assert labels["name"] == "1a cifar100 cnn13 gamma0-0.9 seed 7"
    assert labels["group"] == "table-1a"
    kinds = ["digits", "cnn13", "sgd", "phasewise", "table-1a", "table-1c", "table-mine"]
    assert labels["tags"] == [*kinds, *cells[:2], long[:64]]  # W&B's limit
    assert len(WandB(recipe, {}, [], cells=[long]).labels()["name"]) == 128
    plain = WandB(recipe, {}, []).labels()
    assert plain["name"] == "digits-cnn13-sgd-phasewise-seed7"
    assert plain["group"] == group_id(recipe)
    assert plain["tags"] == kinds[:4]


MINE = """\
title: with columns that are called anything
seeds: [0]
rows:
  - [dataset=digits, model=cnn13_digits]
columns:
  gamma0-0.9: [averaging=phasewise]
  it's[1]{}: [averaging=none]
  ${no}: [averaging=none]
"""


def test_a_sweep_passes_their_cells_to_runs(
    prompt: Prompt,
    compose_settings: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine/table").mkdir(parents=True)
    for name in ("b", "a"):
        (tmp_path / f"mine/table/{name}.yaml").write_text(MINE)
    short = (*TRACKED, "schedule.epochs=[1,1,1]")
    asked = ("--config-dir", str(tmp_path / "mine"), "-m", *short, "table=a,b")
    started: list[WandB] = []
    monkeypatch.setattr(WandB, "_start", lambda self: started.append(self))
    status, out, err = prompt(*asked)
    assert (status, err) == (0, "")
    assert "6 runs requested, 2 unique" in out
    assert "cells=" not in out
    plain, ours = ("it's[1]{}", "${no}"), ("gamma0-0.9",)
    found = {run_id(tracking.recipe): tracking for tracking in started}
    for averaging, columns in {"none": plain, "phasewise": ours}.items():
        alone = compose_settings(*short, f"averaging={averaging}")
        tracking = found.pop(alone.run_id)
        assert tracking.cells == tuple(
            f"{table} digits cnn13_digits {column}" for table in ("a", "b") for column in columns
        )
        text = (tmp_path / "runs" / alone.run_id / "config.yaml").read_text()
        assert yaml.safe_load(text) == alone.record()
        assert "cells" not in text
    assert not found


def records_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the records in the folder of an offline run, read by W&B, by type."""
    told = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for line in told.stdout.splitlines():
        record = json.loads(line)
        found.setdefault(record["type"], []).append(record.get(record["type"]))
    return found


def rows_of(records: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of a W&B run's history without W&B's own fields."""
    rows = [record["item"] for record in records["history"]]
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run in W&B's format."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [flatten(json.loads(line), "/") for line in lines]


def mirrored(runs: Path) -> list[Path]:
    return sorted(runs.glob("wandb/offline-run-*"))


def summary_of(records: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for record in records["summary"]:
        summary |= record.get("update", {})
    return summary


@pytest.mark.slow
def test_a_run_is_mirrored_completely_but_no_credentials(
    compose_settings: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    settings = compose_settings(*TRACKED)
    result = train_script.run(settings)
    (mirror,) = mirrored(settings.runs_dir)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert mirror / f"run-{settings.run_id}.wandb" in files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in "".join(capfd.readouterr())
    records = records_of(mirror)
    lines = lines_of(settings.run_folder)
    assert rows_of(records) == lines
    assert [record["step"]["num"] for record in records["history"]] == [1, 2, 3, 4, 5]
    assert records["exit"][0]["exit_code"] == 0

    (run,) = records["run"]
    assert run["run_id"] == settings.run_id
    assert run["display_name"] == "digits-cnn13-sgd-phasewise-seed0"
    assert (run["project"], run["job_type"]) == ("phaseavg", "train")
    assert run["run_group"] == group_id(settings.recipe())
    assert sorted(run["tags"]) == ["cnn13", "digits", "phasewise", "sgd"]
    config = run["config"]["update"]
    assert config["seed"] == 0
    assert config["averaging"]["weights"]["gamma0"] == 0.9
    assert config["schedule"]["epochs"] == [2, 2, 1]
    assert config["execution"]["device"] == "cpu"
    assert "torch" in config["versions"]
    metrics = records["metric"]
    assert {"name": "epoch", "options": {"defined": True}} in metrics
    assert any(m.get("glob_name") == "*" and m["step_metric"] == "epoch" for m in metrics)

    summary = summary_of(records)
    told = summary["result"]
    assert summary["test_error"] == told["test_error"] == result["test_error"]
    assert told["best_test_error"] == result["best_test_error"]
    assert told["status"] == "finished"
    for phase in result["phases"]:
        assert told[f"phase_{phase['phase']}"] == phase


@pytest.mark.slow
@pytest.mark.parametrize(("event", "count"), [("stepped", 20), ("replaced", 2)])
def test_a_resumed_run_is_one_wandb_run_with_a_complete_curve(
    victims: Any, compose_settings: Compose, event: str, count: int
) -> None:
    settings = compose_settings(*TRACKED)
    died = in_a_victim(victims, victim.train_and_die_at, settings, event, count)
    assert died == -signal.SIGKILL
    assert len(mirrored(settings.runs_dir)) == 1
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    (mirror,) = mirrored(settings.runs_dir)
    assert (mirror / f"run-{settings.run_id}.wandb").is_file()
    records = records_of(mirror)
    lines = lines_of(settings.run_folder)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert rows_of(records) == lines
    assert records["exit"][0]["exit_code"] == 0


@pytest.mark.slow
def test_mirrors_of_other_runs_are_kept(compose_settings: Compose) -> None:
    for seed in (0, 1):
        train_script.run(compose_settings(*TRACKED, f"seed={seed}", "schedule.epochs=[1,1,1]"))
    (first,) = (p for p in mirrored(compose_settings(*TRACKED).runs_dir) if "-seed0-" in p.name)
    first.rename(f"{first}-1")  # W&B's name for a second start within a second
    train_script.run(compose_settings(*TRACKED, "schedule.epochs=[1,1,1]", "rerun=true"))
    names = [path.name for path in mirrored(compose_settings(*TRACKED).runs_dir)]
    assert len(names) == 2
    assert f"{first.name}-1" not in names
    assert sorted(name.partition("seed")[2][0] for name in names) == ["0", "1"]


@pytest.mark.slow
def test_a_failing_run_of_a_sweep_leaves_both_closed(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_once = victim.and_at(2, loop.evaluate, lambda: 1 / 0)
    monkeypatch.setattr(loop, "evaluate", broken_once)
    status, _, err = prompt("-m", *TRACKED, "seed=0,1", "schedule.epochs=[2,1,1]")
    assert status == 1
    assert "ZeroDivisionError" in err
    assert "W&B" not in err
    codes, rows = {}, {}
    for mirror in mirrored(tmp_path / "runs"):
        records = records_of(mirror)
        seed = records["run"][0]["config"]["update"]["seed"]
        codes[seed] = records["exit"][0]["exit_code"]
        rows[seed] = rows_of(records)
    assert codes == {0: 1, 1: 0}
    for folder in (tmp_path / "runs").glob("digits-*"):
        seed = 0 if "seed0" in folder.name else 1
        assert rows[seed] == lines_of(folder)
    assert (len(rows[0]), len(rows[1])) == (1, 4)


@pytest.mark.slow
def test_a_diverged_run_is_marked_as_failed_with_its_reason(prompt: Prompt, tmp_path: Path) -> None:
    status, _, _ = prompt(*TRACKED, "optimizer.lr=1e20")
    assert status == 1
    (mirror,) = mirrored(tmp_path / "runs")
    records = records_of(mirror)
    assert records["exit"][0]["exit_code"] == 1
    told = summary_of(records)["result"]
    assert told["status"] == "diverged"
    assert told["reason"].startswith("the training loss became")


@pytest.mark.slow
def test_a_stopped_run_is_closed_with_the_signals_status(
    victims: Any, compose_settings: Compose, tmp_path: Path
) -> None:
    settings = compose_settings(*TRACKED)
    said = tmp_path / "exit"
    assert in_a_victim(victims, victim.train_and_be_signalled, settings, said, 20) == 0
    assert said.read_text().startswith("130 interrupted")
    records = records_of(*mirrored(settings.runs_dir))
    assert records["exit"][0]["exit_code"] == 130
    assert rows_of(records) == lines_of(settings.run_folder)


BROKEN = {
    "a file in the way": ["tracking.dir=a-file/below"],
    "not installed": [],
    "no key": ["tracking.mode=online"],
    "no server": ["tracking.mode=online"],
}


@pytest.mark.slow
@pytest.mark.parametrize("trouble", BROKEN)
def test_if_wandb_cannot_start_there_is_only_a_warning(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    (tmp_path / "a-file").write_text("kept")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # has no .netrc
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server on the discard port
    monkeypatch.setattr("phaseavg.tracking.INIT_SECONDS", 1.0)
    if trouble == "not installed":
        monkeypatch.setitem(sys.modules, "wandb", None)
    if trouble == "no server":
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
    status, out, err = prompt(*TRACKED, *BROKEN[trouble])
    assert status == 0
    (warning,) = [line for line in err.splitlines() if "Loaded credentials" not in line]
    assert warning.startswith("train.py: W&B failed (")
    assert SECRET not in out + err
    untracked, _, _ = prompt(*TINY, "runs_dir=untracked")
    assert untracked == 0
    (folder,), (other,) = tmp_path.glob("runs/digits-*"), tmp_path.glob("untracked/*")
    ours, others = ((path / "metrics.jsonl").read_text().splitlines() for path in (folder, other))
    assert untimed([*map(json.loads, ours)]) == untimed([*map(json.loads, others)])
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_run_at_a_terminal_does_not_wait_for_a_key(tmp_path: Path) -> None:
    words = [*TINY, "runs_dir=runs", "tracking=wandb", "tracking.mode=online"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, REPOSITORY / "train.py", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError), os.fdopen(ours, "rb", 0) as terminal:
            while part := terminal.read(4096):
                said += part
    assert process.returncode == 0, said
    assert b"W&B failed (" in said
    assert len([*tmp_path.glob("runs/digits-*/result.json")]) == 1


@pytest.mark.slow
def test_after_a_service_failure_the_next_run_is_tracked(
    victims: Any, compose_settings: Compose, tmp_path: Path
) -> None:
    first = compose_settings(*TRACKED)
    second = compose_settings(*TRACKED, "seed=1")
    said = tmp_path / "said"
    assert in_a_victim(victims, victim.break_the_service, [first, second], said) == 0
    warnings = said.read_text().splitlines()
    assert len(warnings) == 1, warnings
    assert warnings[0].startswith("train.py: W&B failed (")
    for settings in (first, second):
        assert result_of(settings)["status"] == "finished"
    assert len(lines_of(first.run_folder)) == 5
    (mirror,) = (p for p in mirrored(second.runs_dir) if p.name.endswith(second.run_id))
    assert rows_of(records_of(mirror)) == lines_of(second.run_folder)


@pytest.mark.slow
def test_disabled_mode_changes_no_files(compose_settings: Compose) -> None:
    short = (*TRACKED[:-1], "schedule.epochs=[1,1,1]")
    train_script.run(compose_settings(*short, "seed=1", "tracking.mode=disabled"))
    runs_dir = compose_settings(*TINY).runs_dir
    assert not mirrored(runs_dir)
    train_script.run(compose_settings(*short))
    (before,) = mirrored(runs_dir)
    train_script.run(compose_settings(*short, "rerun=true", "tracking.mode=disabled"))
    assert mirrored(runs_dir) == [before]
    assert len(rows_of(records_of(before))) == 3


@pytest.mark.slow
def test_a_non_finite_loss_is_a_gap_in_record_and_mirror(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda *given: evaluate(*given)._replace(loss=math.inf))
    settings = compose_settings(*TRACKED, "schedule.epochs=[1,1,1]")
    train_script.run(settings)
    rows = rows_of(records_of(*mirrored(settings.runs_dir)))
    assert rows == lines_of(settings.run_folder)
    assert rows[0]["weights/loss"] is None
