"""W&B without its service: names, modes, error messages and the cells of a sweep."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import TINY, Compose, Prompt
from test_tracking import TRACKED, no_account  # noqa: F401 -- a fixture

from phaseavg import tracking
from phaseavg.errors import UserError
from phaseavg.identity import group_id, run_id
from phaseavg.tracking import WandB


def test_only_repetitions_share_a_group(
    compose_settings: Compose,
) -> None:
    recipes = [
        compose_settings(*TINY, *changes).recipe()
        for changes in (["seed=0"], ["seed=1"], ["averaging=none"], ["batch_size=100"])
    ]
    groups = [group_id(recipe) for recipe in recipes]
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3
    assert len({run_id(recipe) for recipe in recipes}) == 4


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
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    with WandB(compose_settings(*TINY).recipe(), {}, [], dir=tmp_path) as mirror:
        mirror.log({"epoch": 1})
    mirror.finish({"status": "finished"})
    said = capsys.readouterr().err
    assert said.startswith("train.py: W&B failed (the network is gone)")
    assert said.count("\n") == 1
    assert started["settings"]["init_timeout"] == tracking.INIT_SECONDS
    assert started["environment"]["WANDB_ERROR_REPORTING"] == "false"


def test_without_tracking_wandb_is_not_imported(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # makes an import fail
    status, _, err = prompt(*TINY)
    assert (status, err) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert not (tmp_path / "runs" / "wandb").exists()


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
