"""A killed run resumes and ends bit-identical, whenever it is killed."""

import os
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
    ("averaging=phasewise", "replacing config.yaml", 1),
    ("averaging=phasewise", "replacing metrics.jsonl", 1),  # before the first step
    ("averaging=phasewise", "replacing metrics.jsonl", 2),  # at the first epoch's end
    ("averaging=phasewise", "replacing metrics.jsonl", 3),  # at the first phase's end
    ("averaging=phasewise", "replacing checkpoint", 1),
    ("averaging=phasewise", "replacing checkpoint", 16),  # at the first phase's end
    ("averaging=phasewise", "replacing weights.safetensors", 1),
    ("averaging=phasewise", "replacing result.json", 1),
    ("averaging=rna", "replacing snapshot", 1),  # before the first step
    ("averaging=rna", "replacing snapshot", 3),  # at the first phase's end
    ("optimizer=lookahead averaging=uniform", "stepped", 12),  # mid-epoch and mid-window
    ("averaging=phasewise", "half-written checkpoint", 9),  # in the middle of an epoch
    ("averaging=phasewise", "half-written checkpoint", 17),  # after the first phase's end
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
    saved = [int(path.name.split("-")[1]) for path in settings.run_folder.glob("checkpoint-*")]
    assert in_a_victim(victims, victim.train_quietly, settings) == 0
    started = re.findall(r" from step (\d+);", (settings.runs_dir / "said").read_text())
    assert started[-1] == str(max(saved, default=0))
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
