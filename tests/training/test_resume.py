"""A killed run resumes and ends bit-identical, whenever it is killed."""

import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import victims as victim
from conftest import (
    TINY,
    Compose,
    assert_same_weights,
    history_of,
    in_a_victim,
    result_of,
    untimed,
    weights_of,
)

from phaseavg.config import Settings
from phaseavg.training.parts import assemble

pytestmark = pytest.mark.slow

SHORT = "schedule.epochs=[2,2,1]"  # repeated, since a new schedule option changes the epochs

MOMENTS = [
    ("averaging=phasewise", "replaced", 1),
    ("averaging=rna", "before-replacing", 3),  # a snapshot
    ("optimizer=lookahead averaging=uniform", "stepped", 12),  # mid-epoch and mid-window
    ("averaging=phasewise", "half-written", 12),  # a checkpoint in the middle of an epoch
    ("averaging=phasewise", "half-written", 21),  # around the first phase's end
    ("averaging=phasewise", "before-replacing", 11),  # metrics.jsonl at the first epoch's end
    ("averaging=phasewise", "stepped", 16),  # a phase's last step
    ("averaging=end", "stepped", 17),  # a phase's first step
    ("optimizer=lookahead", "replaced", 1),
    ("optimizer=lookahead averaging=none", "stepped", 40),  # the last step
    ("optimizer=adam optimizer_state=reset", "stepped", 17),
    ("optimizer=lookahead averaging=none optimizer_state=reset", "stepped", 16),
    ("averaging=rna averaging.weights.window=1 optimizer=lookahead", "stepped", 12),
    ("averaging=none +averaging@observers.a=rna +averaging@observers.b=uniform", "stepped", 12),
]
"""Recipes with the event and count at which `train_and_die_at` kills the run."""


def outcome(settings: Settings) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Return the final weights and the metrics, without times."""
    return weights_of(settings), untimed(history_of(settings))


def assert_same_outcome(settings: Settings, expected: tuple[Any, Any]) -> None:
    weights, metrics = outcome(settings)
    assert_same_weights(weights, expected[0])
    assert metrics == expected[1]
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4, 5]
    for leftover in (".*.part", "checkpoint-*.pt", "snapshots"):
        assert not list(settings.run_folder.glob(leftover))


@pytest.fixture(scope="module")
def undisturbed(
    victims: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Settings], Any]]:
    """Return a function that trains an uninterrupted run and returns its outcome."""
    outcomes: dict[str, Any] = {}

    def trained(settings: Settings) -> Any:
        name = f"{settings.run_id} {settings.observers}"  # observers are not in the recipe
        if name not in outcomes:
            elsewhere = settings.model_copy(
                update={
                    "runs_dir": tmp_path_factory.mktemp("undisturbed"),
                    "checkpoint_seconds": 1000.0,
                }
            )
            assert in_a_victim(victims, victim.train_quietly, elsewhere) == 0
            outcomes[name] = outcome(elsewhere)
        return outcomes[name]

    return trained


def test_a_run_killed_at_12_random_moments_ends_bit_identical(
    victims: Any,
    compose_settings: Compose,
    undisturbed: Callable[..., Any],
) -> None:
    settings = compose_settings(*TINY, "save_weights=true")
    expected = undisturbed(settings)
    moments = random.Random(0)
    for _ in range(12):
        count = moments.randrange(1, 80_000)  # a step and its checkpoint are some 25,000 calls
        died = in_a_victim(victims, victim.train_and_die_at, settings, "called", count)
        assert died == -signal.SIGKILL
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    assert_same_outcome(settings, expected)
    output = (settings.runs_dir / "said").read_text()
    starts = [int(step) for step in re.findall(r" from step (\d+);", output)]
    assert len(starts) == 13
    assert len(set(starts)) > 3  # the runs resumed instead of starting again


@pytest.mark.parametrize(("kind", "event", "count"), MOMENTS)
def test_a_killed_run_ends_bit_identical(
    victims: Any,
    compose_settings: Compose,
    undisturbed: Callable[..., Any],
    kind: str,
    event: str,
    count: int,
) -> None:
    settings = compose_settings(*TINY, "save_weights=true", *kind.split(), SHORT)
    expected = undisturbed(settings)
    died = in_a_victim(victims, victim.train_and_die_at, settings, event, count)
    assert died == -signal.SIGKILL
    assert not (settings.run_folder / "result.json").exists()
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    assert_same_outcome(settings, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state_and_stops_with_one_line(
    victims: Any,
    compose_settings: Compose,
    undisturbed: Callable[..., Any],
    tmp_path: Path,
    number: int,
) -> None:
    settings = compose_settings(*TINY, "save_weights=true")
    rarely_saving = settings.model_copy(update={"checkpoint_seconds": 1000.0})
    output = tmp_path / "said"
    arguments = (rarely_saving, output, 12, os.kill, number)
    assert in_a_victim(victims, victim.train_and_be_signalled, *arguments) == 0
    assert output.read_text().startswith(f"{128 + number} interrupted after step 12 ")
    assert "rerun the same command to resume" in output.read_text()
    assert list(settings.run_folder.glob("checkpoint-*"))
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    assert_same_outcome(settings, undisturbed(settings))


def test_a_damaged_checkpoint_is_set_aside(
    victims: Any, compose_settings: Compose, undisturbed: Callable[..., Any]
) -> None:
    settings = compose_settings(*TINY, "save_weights=true")
    in_a_victim(victims, victim.train_and_die_at, settings, "stepped", 20)
    latest = max(settings.run_folder.glob("checkpoint-*"))
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 1
    latest.write_bytes(content)
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    assert latest.with_name(f"{latest.name}.damaged").exists()
    assert_same_outcome(settings, undisturbed(settings))


def test_a_damaged_snapshot_restarts_the_run(
    victims: Any,
    compose_settings: Compose,
    undisturbed: Callable[..., Any],
    tmp_path: Path,
) -> None:
    settings = compose_settings(*TINY, "save_weights=true", "averaging=rna")
    in_a_victim(victims, victim.train_and_die_at, settings, "stepped", 29)
    # Both checkpoints need the snapshot of the phase's start.
    first = min(settings.run_folder.glob("snapshots/*-0000-*.pt"))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    output = (settings.runs_dir / "said").read_text()
    assert output.count(f"{first} is damaged") == 2
    assert [int(step) for step in re.findall(r" from step (\d+);", output)] == [0, 0]
    assert_same_outcome(settings, undisturbed(settings))


def test_a_record_names_every_execution_of_a_run_once(
    victims: Any, compose_settings: Compose
) -> None:
    settings = compose_settings(*TINY)
    for _ in range(2):
        in_a_victim(victims, victim.train_and_die_at, settings, "stepped", 9)
    execution = settings.execution.model_copy(update={"precision": "bf16"})
    settings = settings.model_copy(update={"execution": execution})
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    provenance = result_of(settings)["provenance"]
    assert [entry["execution"]["precision"] for entry in provenance] == ["fp32", "bf16"]


def test_the_last_provenance_is_that_of_the_last_session(compose_settings: Compose) -> None:
    _, _, state = assemble(compose_settings(*TINY), torch.device("cpu"))
    for device in ("a", "b", "a"):
        state.add_provenance({"device": device})
    assert [entry["device"] for entry in state.provenance] == ["b", "a"]


@pytest.mark.parametrize("count", [1, 3, 12])
def test_a_failed_write_is_reported_and_leaves_no_partial_file(
    victims: Any,
    compose_settings: Compose,
    undisturbed: Callable[..., Any],
    tmp_path: Path,
    count: int,
) -> None:
    settings = compose_settings(*TINY, "save_weights=true")
    output = tmp_path / "said"
    in_a_victim(victims, victim.fail_to_write, settings, count, output)
    message = output.read_text()
    assert message.startswith(f"runs_dir={settings.runs_dir}: ")
    assert "No space left on device" in message
    assert "\n" not in message
    assert not list(settings.run_folder.glob(".*.part"))
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    assert_same_outcome(settings, undisturbed(settings))


def test_the_evaluation_cadence_does_not_change_the_weights(
    victims: Any, compose_settings: Compose
) -> None:
    # One batch is the whole training set: every step ends an epoch.
    one_step = (*TINY, "batch_size=1000", "schedule.epochs=[4,3,3]", "save_weights=true")
    never = compose_settings(*one_step, "evaluation.every=0", "evaluation.average_every=0")
    always = compose_settings(*one_step, "evaluation.every=1", "evaluation.average_every=1")
    assert never.run_id == always.run_id
    always = always.model_copy(update={"runs_dir": always.runs_dir / "always"})
    for settings in (never, always):
        assert in_a_victim(victims, victim.train_quietly, settings) == 0
    tested = [sum("weights" in line for line in outcome(s)[1]) for s in (never, always)]
    assert tested == [3, 10]
    assert_same_weights(weights_of(always), weights_of(never))
