"""Weights that are kept on the way."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import victims as victim
from conftest import TINY, Prompt
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import nn

import train
from phaseavg.config import Settings, check
from phaseavg.errors import UserError
from phaseavg.targets import build
from phaseavg.training.execution import pick_device
from phaseavg.training.parts import load_data, new_model
from phaseavg.training.snapshots import (
    Snapshots,
    last_layer,
    path_of,
    read_last_weight,
    read_snapshot,
)

STEPS = 8  # of an epoch of TINY, which has phases of 2, 2 and 1 epochs
ENDS = [STEPS * epoch for epoch in range(6)]


def folder_of(settings: Settings) -> Path:
    return settings.run_folder / "trajectory"


def kept(settings: Settings) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in folder_of(settings).iterdir())


def contents(settings: Settings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder_of(settings).iterdir()}


def without_seconds(settings: Settings) -> list[dict[str, Any]]:
    lines = (settings.run_folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    """Return a function from overrides to the settings of a trained run."""
    known: dict[tuple[str, ...], Settings] = {}

    def run(*overrides: str) -> Settings:
        if overrides not in known:
            folder = tmp_path_factory.mktemp("runs")
            GlobalHydra.instance().clear()
            with initialize_config_dir(str(train.CONF), version_base="1.3"):
                where = (f"runs_dir={folder}", f"records_dir={folder}", "weights=final")
                known[overrides] = check(compose("config", [*TINY, *where, *overrides]))
            train.run(known[overrides])
        return known[overrides]

    return run


def test_every_epochs_weights_are_kept_from_the_first_to_the_last(
    trained: Callable[..., Settings],
) -> None:
    settings = trained("averaging=none", "snapshots=epochs")
    assert kept(settings) == ENDS
    first = new_model(settings, load_data(settings, pick_device("cpu"))).state_dict()
    last = safetensors.torch.load_file(settings.run_folder / "weights.safetensors")
    for step, expected in ((0, first), (ENDS[-1], last)):
        found = read_snapshot(folder_of(settings), step)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_keeping_them_changes_nothing(trained: Callable[..., Settings]) -> None:
    plain, keeping = trained("averaging=none"), trained("averaging=none", "snapshots=epochs")
    weights = [(s.run_folder / "weights.safetensors").read_bytes() for s in (plain, keeping)]
    assert plain.run_id == keeping.run_id
    assert weights[0] == weights[1]
    assert without_seconds(plain) == without_seconds(keeping)
    assert not folder_of(plain).exists()


def test_those_of_the_last_layer_are_a_part_of_all(trained: Callable[..., Settings]) -> None:
    alone = trained("averaging=none", "snapshots=last_layer")
    whole = trained("averaging=none", "snapshots=epochs")
    assert kept(alone) == ENDS
    for step in ENDS:
        found = read_snapshot(folder_of(alone), step)
        everything = read_snapshot(folder_of(whole), step)
        assert {name.rpartition(".")[2] for name in found} == {"weight", "bias"}
        assert all(torch.equal(everything[name], tensor) for name, tensor in found.items())
        weight = read_last_weight(folder_of(whole), step)
        assert weight.shape[0] == 10
        assert torch.equal(weight, read_last_weight(folder_of(alone), step))


def test_single_steps_are_kept_before_the_ends_of_phases(trained: Callable[..., Settings]) -> None:
    settings = trained("averaging=none", "snapshots=steps")
    before = [end - back for end in (16, 32, 40) for back in (1, 2, 4)]
    assert kept(settings) == sorted([*ENDS, *before])


def test_they_are_the_weights_of_the_epochs_end_before_an_average_replaces_them(
    trained: Callable[..., Settings],
) -> None:
    plain = trained("averaging=none", "snapshots=epochs")
    averaged = trained("averaging=phasewise", "snapshots=epochs")
    end = 16  # of the first phase
    found, expected = (read_snapshot(folder_of(s), end) for s in (averaged, plain))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    after = [read_snapshot(folder_of(s), end + STEPS) for s in (averaged, plain)]
    assert any(not torch.equal(after[0][name], tensor) for name, tensor in after[1].items())


def test_of_lookahead_they_are_the_weights_that_are_tested(
    trained: Callable[..., Settings],
) -> None:
    settings = trained("averaging=none", "optimizer=lookahead", "snapshots=epochs")
    last = safetensors.torch.load_file(settings.run_folder / "weights.safetensors")
    found = read_snapshot(folder_of(settings), 16)  # 5 does not divide it
    live = trained(
        "averaging=none", "optimizer=lookahead", "schedule.epochs=[2]", "schedule.factors=[1]"
    )
    tested = safetensors.torch.load_file(live.run_folder / "weights.safetensors")
    for name, tensor in tested.items():
        assert torch.equal(found[name], tensor)
    assert any(not torch.equal(last[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("event", "count"), [("stepped", 12), ("stepped", 16), ("before-replacing", 3)]
)
def test_a_run_killed_anywhere_ends_with_the_same_ones(
    event: str,
    count: int,
    victims: Any,
    trained: Callable[..., Settings],
    compose_settings: Callable[..., Settings],
) -> None:
    settings = compose_settings(*TINY, "averaging=none", "snapshots=steps")
    for target, arguments in (
        (victim.train_and_die_at, (settings, event, count)),
        (victim.train_quietly, (settings,)),
    ):
        process = victims.Process(target=target, args=arguments)
        process.start()
        process.join()
    assert process.exitcode == 0
    assert contents(settings) == contents(trained("averaging=none", "snapshots=steps"))


@pytest.mark.parametrize("before", ["none", "last_layer"])
def test_a_run_that_has_kept_less_is_not_gone_on_with(
    before: str, victims: Any, compose_settings: Callable[..., Settings]
) -> None:
    settings = compose_settings(*TINY, "averaging=none", f"snapshots={before}")
    process = victims.Process(target=victim.train_and_die_at, args=(settings, "stepped", 12))
    process.start()
    process.join()
    with pytest.raises(UserError, match=r"snapshots=epochs: .* without the one after step 0"):
        train.run(settings.model_copy(update={"snapshots": "epochs"}))


def test_they_are_not_kept_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, compose_settings: Callable[..., Settings]
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10_000))
    settings = compose_settings(*TINY, "averaging=none", "snapshots=epochs")
    with pytest.raises(UserError, match=r"snapshots=epochs: .* GB are needed, .* has room for"):
        train.run(settings)
    assert not list(folder_of(settings).iterdir())


def test_what_they_take_is_said_beforehand(prompt: Prompt) -> None:
    status, out, _ = prompt(*TINY, "averaging=none", "snapshots=epochs", "dry_run=true")
    (line,) = [line for line in out.splitlines() if line.startswith("snapshots")]
    assert status == 0
    assert "6 files, " in line
    assert line.endswith("/trajectory")
    status, out, _ = prompt(*TINY, "averaging=none", "snapshots=epochs", "runs_dir=r")
    said = next(line for line in out.splitlines() if line.startswith("snapshots=epochs: 6 files, "))
    sizes = [p.stat().st_size for p in Path("r").glob("*/trajectory/*")]
    number, unit = said.split(", ")[1].split()[:2]
    told = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
    assert told <= sum(sizes) < 2 * told  # of so small a network names take a part


def test_a_run_that_keeps_them_trains_all_epochs_itself(prompt: Prompt) -> None:
    here = (*TINY, "runs_dir=r", "records_dir=r")
    assert prompt("-m", *here, "averaging=none,phasewise")[0] == 0
    shutil.rmtree(next(Path("r").glob("*noaveraging*")))
    status, out, _ = prompt(*here, "averaging=none", "snapshots=last_layer")
    assert status == 0
    assert "from step 0;" in out
    assert len(list(Path("r").glob("*/trajectory/*"))) == len(ENDS)


def test_a_finished_run_says_that_it_has_not_got_them(prompt: Prompt) -> None:
    here = (*TINY, "averaging=none", "runs_dir=r", "records_dir=r", "share=false")
    assert prompt(*here, "snapshots=last_layer")[0] == 0
    assert "finished before: " in prompt(*here, "snapshots=last_layer")[1]
    assert "without snapshots=epochs" in prompt(*here, "snapshots=epochs")[1]
    (result,) = Path("r").glob("*/result.json")
    more = result.read_text().replace('"snapshots": "last_layer"', '"snapshots": "steps"')
    result.write_text(more)
    assert "finished before: " in prompt(*here, "snapshots=epochs")[1]
    shutil.rmtree(next(Path("r").glob("*/trajectory")))
    assert "without snapshots=last_layer" in prompt(*here, "snapshots=last_layer")[1]
    assert prompt(*here, "snapshots=epochs", "force=true")[0] == 0
    assert len(list(Path("r").glob("*/trajectory/*"))) == len(ENDS)


def test_what_cannot_be_kept_or_read_is_refused_in_one_line(
    tmp_path: Path, compose_settings: Callable[..., Settings]
) -> None:
    convolution = nn.Conv2d(1, 10, 3)
    with pytest.raises(UserError, match="no linear layer"):
        last_layer(convolution)
    settings = compose_settings(*TINY, "snapshots=epochs")
    snapshots = Snapshots(settings, build("schedule", settings.schedule), convolution, STEPS)
    snapshots.begin(0)
    snapshots.take(0)
    assert read_last_weight(folder_of(settings), 0) is None
    path = path_of(folder_of(settings), 0)
    other = path_of(tmp_path / "other" / "trajectory", 0)
    other.parent.mkdir(parents=True)
    shutil.copy(path, other)
    with pytest.raises(UserError, match=f"is of another run, {settings.run_id}"):
        read_snapshot(other.parent, 0)
    path.write_bytes(path.read_bytes()[:-8])
    for step in (0, 1):
        with pytest.raises(UserError, match="missing or damaged"):
            read_snapshot(folder_of(settings), step)
