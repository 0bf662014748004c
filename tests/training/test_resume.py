"""A run cut anywhere ends as if it had not been."""

import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import victims as victim
from conftest import TINY

from phaseavg.config import Settings
from phaseavg.runs.identity import run_id

SHORT = "schedule.epochs=[2,2,1]"  # once more, for another schedule has epochs of its own

EVENTS = [
    ("half-written", 12),  # a checkpoint, in mid-epoch
    ("half-written", 21),  # around the first phase's end
    ("before-replacing", 11),  # metrics.jsonl at the first epoch's end
    ("before-replacing", 21),
    ("replaced", 1),
    ("replaced", 2),
    ("stepped", 9),  # an epoch's first step
    ("stepped", 16),  # a phase's last step
    ("stepped", 17),  # a phase's first step
]
DELICATE = [
    *(("averaging=phasewise", event, count) for event, count in EVENTS),
    ("averaging=end", "replaced", 1),
    ("averaging=end", "stepped", 17),
    ("averaging=none", "stepped", 16),
    # Steps 12 and 33 are within an epoch, a phase and a window of Lookahead's. Adam's state is a
    # part of AMSGrad's, and below it is reset; Lookahead's goes on at 12 with two averages.
    *((f"optimizer={name}", "stepped", 12) for name in ("amsgrad", "adabound")),
    ("optimizer=lookahead", "replaced", 1),
    ("optimizer=lookahead averaging=none", "stepped", 33),
    ("optimizer=lookahead averaging=none", "stepped", 40),  # all but what is left to finish
    ("optimizer=lookahead averaging=uniform", "stepped", 12),
    ("optimizer=adam optimizer_state=reset", "stepped", 17),
    ("optimizer=lookahead averaging=none optimizer_state=reset", "stepped", 16),
    ("schedule=decayed schedule.shape.per=step averaging=none", "stepped", 12),
    ("averaging=rna", "replaced", 1),
    ("averaging=rna", "before-replacing", 3),  # a snapshot
    ("averaging=rna", "before-replacing", 16),
    ("averaging=rna averaging.weights.window=1 optimizer=lookahead", "stepped", 12),
    ("averaging=end averaging/weights=rna", "stepped", 33),
    ("averaging=none +averaging@watch.a=rna +averaging@watch.b=uniform", "stepped", 12),
]


def folder_of(settings: Settings) -> Path:
    return settings.runs_dir / run_id(settings.recipe())


def in_a_victim(victims: Any, target: Callable[..., None], *arguments: Any) -> Any:
    process = victims.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process


def without_seconds(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if "second" not in key}


def outcome(settings: Settings) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the final weights and the metrics, less what took how long."""
    folder = folder_of(settings)
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return weights, [without_seconds(json.loads(line)) for line in lines]


def assert_same_outcome(settings: Settings, expected: tuple[Any, Any]) -> None:
    weights, metrics = outcome(settings)
    assert weights.keys() == expected[0].keys()
    for name, tensor in expected[0].items():
        assert torch.equal(weights[name], tensor), name
    assert metrics == expected[1]
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4, 5]
    assert not list(folder_of(settings).glob(".*.part"))
    assert not list(folder_of(settings).glob("checkpoint-*.pt"))
    assert not (folder_of(settings) / "snapshots").exists()


@pytest.fixture(scope="module")
def undisturbed(
    victims: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Settings], Any]]:
    """Return a function from settings to the outcome of the same run, left in peace."""
    known: dict[str, Any] = {}

    def trained(settings: Settings) -> Any:
        name = f"{run_id(settings.recipe())} {settings.watch}"  # which is no part of the recipe
        if name not in known:
            elsewhere = settings.model_copy(
                update={
                    "runs_dir": tmp_path_factory.mktemp("undisturbed"),
                    "checkpoint_seconds": 1000.0,
                }
            )
            assert in_a_victim(victims, victim.train_quietly, elsewhere).exitcode == 0
            known[name] = outcome(elsewhere)
        return known[name]

    return trained


def test_a_run_killed_at_12_random_moments_ends_bit_identical(
    victims: Any,
    compose_settings: Callable[..., Settings],
    undisturbed: Callable[..., Any],
) -> None:
    settings = compose_settings(*TINY, "weights=final")
    expected = undisturbed(settings)
    moments = random.Random(0)
    for _ in range(12):
        count = moments.randrange(1, 80_000)  # a step and its checkpoint are some 25,000 calls
        died = in_a_victim(victims, victim.train_and_die_at, settings, "called", count)
        assert died.exitcode == -signal.SIGKILL
    assert in_a_victim(victims, victim.train_quietly, settings).exitcode == 0
    assert_same_outcome(settings, expected)
    said = (settings.runs_dir / "said").read_text()
    starts = [int(step) for step in re.findall(r" from step (\d+);", said)]
    assert len(starts) == 13
    assert len(set(starts)) > 3  # they went on from where they were, not from the start


@pytest.mark.parametrize(("kind", "event", "count"), DELICATE)
def test_a_run_killed_at_a_delicate_point_ends_bit_identical(
    victims: Any,
    compose_settings: Callable[..., Settings],
    undisturbed: Callable[..., Any],
    kind: str,
    event: str,
    count: int,
) -> None:
    settings = compose_settings(*TINY, "weights=final", *kind.split(), SHORT)
    expected = undisturbed(settings)
    died = in_a_victim(victims, victim.train_and_die_at, settings, event, count)
    assert died.exitcode == -signal.SIGKILL
    assert not (folder_of(settings) / "result.json").exists()
    assert in_a_victim(victims, victim.train_quietly, settings).exitcode == 0
    assert_same_outcome(settings, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_with_a_clear_line(
    victims: Any,
    compose_settings: Callable[..., Settings],
    undisturbed: Callable[..., Any],
    tmp_path: Path,
    number: int,
) -> None:
    settings = compose_settings(*TINY, "weights=final")
    rarely_saving = settings.model_copy(update={"checkpoint_seconds": 1000.0})
    said = tmp_path / "said"
    how = (rarely_saving, said, 12, os.kill, number)
    assert in_a_victim(victims, victim.train_and_be_signalled, *how).exitcode == 0
    assert said.read_text().startswith(f"{128 + number} interrupted and saved after step 12 ")
    assert "the same command goes on" in said.read_text()
    assert list(folder_of(settings).glob("checkpoint-*"))
    assert in_a_victim(victims, victim.train_quietly, settings).exitcode == 0
    assert_same_outcome(settings, undisturbed(settings))


def test_a_damaged_checkpoint_is_set_aside_and_made_up_for(
    victims: Any, compose_settings: Callable[..., Settings], undisturbed: Callable[..., Any]
) -> None:
    settings = compose_settings(*TINY, "weights=final")
    in_a_victim(victims, victim.train_and_die_at, settings, "stepped", 20)
    latest = max(folder_of(settings).glob("checkpoint-*"))
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    assert in_a_victim(victims, victim.train_quietly, settings).exitcode == 0
    assert latest.with_name(f"{latest.name}.damaged").exists()
    assert_same_outcome(settings, undisturbed(settings))


def test_damaged_snapshots_are_made_up_for(
    victims: Any,
    compose_settings: Callable[..., Settings],
    undisturbed: Callable[..., Any],
    tmp_path: Path,
) -> None:
    settings = compose_settings(*TINY, "weights=final", "averaging=rna")
    in_a_victim(victims, victim.train_and_die_at, settings, "stepped", 29)
    # The phase's start, on which both checkpoints rest: all is trained anew.
    first = min(folder_of(settings).glob("snapshots/*-0000-*.pt"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    assert in_a_victim(victims, victim.train_quietly, settings).exitcode == 0
    said = (settings.runs_dir / "said").read_text()
    assert said.count(f"{first} is damaged") == 2
    assert [int(step) for step in re.findall(r" from step (\d+);", said)] == [0, 0]
    assert_same_outcome(settings, undisturbed(settings))


@pytest.mark.parametrize("precisions", [["fp32"], ["fp32", "bf16"]])
def test_a_record_names_all_that_a_run_was_continued_with(
    victims: Any, compose_settings: Callable[..., Settings], precisions: list[str]
) -> None:
    settings = compose_settings(*TINY)
    in_a_victim(victims, victim.train_and_die_at, settings, "stepped", 9)
    execution = settings.execution.model_copy(update={"precision": precisions[-1]})
    settings = settings.model_copy(update={"execution": execution})
    assert in_a_victim(victims, victim.train_quietly, settings).exitcode == 0
    result = json.loads((folder_of(settings) / "result.json").read_text())
    assert [made["execution"]["precision"] for made in result["provenance"]] == precisions


@pytest.mark.parametrize("count", [1, 2, 3, 12, 25])
def test_a_failing_write_says_so_in_one_line_and_leaves_nothing_half_written(
    victims: Any,
    compose_settings: Callable[..., Settings],
    undisturbed: Callable[..., Any],
    tmp_path: Path,
    count: int,
) -> None:
    settings = compose_settings(*TINY, "weights=final")
    said = tmp_path / "said"
    in_a_victim(victims, victim.fail_to_write, settings, count, said)
    message = said.read_text()
    assert message.startswith(f"runs_dir={settings.runs_dir}: ")
    assert "No space left on device" in message
    assert "\n" not in message
    assert not list(folder_of(settings).glob(".*.part"))
    assert in_a_victim(victims, victim.train_quietly, settings).exitcode == 0
    assert_same_outcome(settings, undisturbed(settings))


def test_evaluating_never_or_at_every_step_gives_the_same_weights(
    victims: Any, compose_settings: Callable[..., Settings]
) -> None:
    # One batch is the whole training set: every step ends an epoch.
    one_step = (*TINY, "batch_size=1000", "schedule.epochs=[4,3,3]", "weights=final")
    never = compose_settings(*one_step, "evaluation.every=0", "evaluation.average_every=0")
    always = compose_settings(*one_step, "evaluation.every=1", "evaluation.average_every=1")
    assert run_id(never.recipe()) == run_id(always.recipe())
    always = always.model_copy(update={"runs_dir": always.runs_dir / "always"})
    for settings in (never, always):
        assert in_a_victim(victims, victim.train_quietly, settings).exitcode == 0
    tested = [sum("test_error" in line for line in outcome(s)[1]) for s in (never, always)]
    assert tested == [3, 10]
    for name, tensor in outcome(never)[0].items():
        assert torch.equal(outcome(always)[0][name], tensor), name
