"""Prefix keys: two runs have equal ones exactly as long as their epochs are equal."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from conftest import REPOSITORY, TINY
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from phaseavg.config import Settings, check
from phaseavg.phases import Schedule
from phaseavg.runs.prefix import Averaging, Trajectory, different_epochs, execution_key
from phaseavg.targets import build

STEPS = 3
"""In an epoch of the reference."""


@pytest.fixture(scope="module")
def base() -> Settings:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return check(compose("config", list(TINY)))


PHASES = "phaseavg.phases"
SHAPES = [
    None,
    {"_target_": f"{PHASES}.Decayed", "gamma0": 0.9, "per": "epoch"},
    {"_target_": f"{PHASES}.Decayed", "gamma0": 0.99, "per": "step"},
    {"_target_": f"{PHASES}.Cosine", "per": "epoch"},
    {"_target_": f"{PHASES}.Cosine", "per": "step"},
]
WEIGHTS = [
    {"_target_": "phaseavg.averaging.Exponential", "gamma0": 0.9},
    {"_target_": "phaseavg.averaging.Exponential", "gamma0": 0.5},
    {"_target_": "phaseavg.averaging.RNA", "rho": 1e-5, "window": None},
]
AVERAGINGS = [
    {"_target_": "phaseavg.averaging.NoAveraging"},
    *({"_target_": "phaseavg.averaging.Phasewise", "weights": w} for w in WEIGHTS),
    *(
        {"_target_": "phaseavg.averaging.AtEnd", "weights": WEIGHTS[0], "window": window}
        for window in ("training", "phase")
    ),
]
SHORT = st.integers(1, 3)


@st.composite
def changes(draw: Callable[..., Any]) -> dict[str, Any]:
    """Return what differs from the base: few choices, so that prefixes are often equal."""
    epochs = draw(st.lists(SHORT, min_size=1, max_size=3))
    factors = [draw(st.sampled_from([1.0, 0.1])) for _ in epochs]
    schedule = {"_target_": f"{PHASES}.Schedule", "epochs": epochs, "factors": factors}
    if shape := draw(st.sampled_from(SHAPES)):
        schedule["shape"] = shape
    return {
        "schedule": schedule,
        "averaging": draw(st.sampled_from(AVERAGINGS)),
        "optimizer_state": draw(st.sampled_from(["keep", "reset"])),
        "batchnorm_batches": draw(st.sampled_from([None, 2])),
        "seed": draw(st.sampled_from([0, 0, 0, 1])),
        "weight_decay": draw(st.sampled_from([0.0, 1.0])),  # is in the recipe with the optimizer
        "watch": draw(st.sampled_from([{}, {"ours": AVERAGINGS[1]}])),
    }


def epochs_of(settings: Settings, epochs: int) -> list[Any]:
    """Return what happens in each epoch up to its last update, step by step: the reference."""
    schedule = build("schedule", settings.schedule, Schedule)
    fixed = (settings.dataset, settings.model, settings.optimizer, settings.batch_size)
    kind = settings.averaging["_target_"].rpartition(".")[2]
    found = []
    for epoch in range(epochs):
        rates = [schedule.factor(epoch * STEPS + step, STEPS) for step in range(STEPS)]
        phase = schedule.phase(epoch)
        before = []  # between the last epoch's last update and this one's first
        if epoch == phase.first_epoch and phase.index > 0:
            before.append(("phase", settings.optimizer_state))
            if kind == "Phasewise":
                window = schedule.phases[phase.index - 1].epochs
                weights, batches = settings.averaging["weights"], settings.batchnorm_batches
                before.append(("replaced", window, weights, batches))
        found.append((settings.seed, fixed, before, rates))
    return found


@hypothesis_settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(one=changes(), other=changes(), own_optimizer=st.sampled_from([0.1, 0.1, 0.2]))
def test_keys_are_equal_exactly_when_the_epochs_are(
    base: Settings, one: dict[str, Any], other: dict[str, Any], own_optimizer: float
) -> None:
    left = base.model_copy(update=one)
    optimizer = {**base.optimizer, "lr": own_optimizer}
    right = base.model_copy(update={**other, "optimizer": optimizer})
    left_run, right_run = Trajectory(left), Trajectory(right)
    for epochs in range(1, min(left_run.total_epochs, right_run.total_epochs) + 1):
        equal = epochs_of(left, epochs) == epochs_of(right, epochs)
        assert (left_run.key(epochs) == right_run.key(epochs)) == equal, epochs


def test_keys_of_prefixes_of_one_run_all_differ(base: Settings) -> None:
    trajectory = Trajectory(base)
    keys = [trajectory.key(epoch) for epoch in range(1, trajectory.total_epochs + 1)]
    assert len(set(keys)) == 5
    for wrong in (0, 6):
        with pytest.raises(ValueError, match=f"epochs={wrong} must be from 1 to 5"):
            trajectory.key(wrong)


@pytest.mark.parametrize("name", ["dataset", "model", "optimizer"])
def test_every_argument_of_a_part_counts(base: Settings, name: str) -> None:
    part = getattr(base, name)
    for key, value in part.items():
        changed = base.model_copy(update={name: {**part, key: f"not {value}"}})
        assert Trajectory(changed).key(1) != Trajectory(base).key(1), key


def test_an_average_is_the_same_one_in_runs_that_give_it_the_same_window() -> None:
    ours, end, phase = AVERAGINGS[1], *AVERAGINGS[4:]
    assert Averaging(ours, [80]).identity(80) == Averaging(ours, [80, 40, 40]).identity(60)
    assert Averaging(ours, [80]).identity(60) != Averaging(ours, [60, 30, 30]).identity(60)
    assert Averaging(ours, [80]).identity(80) != Averaging(AVERAGINGS[2], [80]).identity(80)
    assert Averaging(end, [80, 40, 40]).identity(80) != Averaging(end, [80]).identity(80)
    assert Averaging(end, [80, 40, 40]).identity(1) == Averaging(end, [80, 40, 40]).identity(160)
    assert Averaging(phase, [80, 40, 40]).identity(120) is None
    assert Averaging(phase, [80, 40, 40]).identity(121) is not None
    assert Averaging(AVERAGINGS[0], [80]).identity(80) is None


def test_a_run_whose_averager_says_nothing_beforehand_shares_nothing(base: Settings) -> None:
    """Not even with one of which only the schedule differs, after the epochs in question."""
    part = {"_target_": "phaseavg.averaging.Averager"}
    longer = {**base.schedule, "epochs": [2, 2, 2]}
    own = Trajectory(base.model_copy(update={"averaging": part}))
    other = Trajectory(base.model_copy(update={"averaging": part, "schedule": longer}))
    assert not own.sharable
    assert not Trajectory(base.model_copy(update={"watch": {"mine": part}})).sharable
    assert own.key(1) != other.key(1)
    assert own.key(1) != Trajectory(base).key(1)
    assert Trajectory(base).sharable


def test_the_execution_counts_and_where_it_is_told_does_not(base: Settings) -> None:
    cpu = torch.device("cpu")

    def key(**execution: Any) -> str:
        changed = base.execution.model_copy(update=execution)
        return execution_key(base.model_copy(update={"execution": changed}), cpu)

    assert key() == key(workers=3) == key(device="cpu")
    changes = [{"precision": "bf16"}, {"compile": True}, {"average_device": "cuda"}]
    others = {key(), *(key(**change) for change in changes)}
    assert len(others) == 4
    torch.set_num_threads(2)
    try:
        assert key() not in others
    finally:
        torch.set_num_threads(1)


def test_epochs_of_runs_that_part_are_counted_once_by_hand(base: Settings) -> None:
    """Trained to 3, where two part after 2: 3 + 3 + 1 + 1 epochs, and a stranger's 4."""

    def run(epochs: list[int], averaging: Any, seed: int = 0) -> Trajectory:
        schedule = {**base.schedule, "epochs": epochs, "factors": [1, 0.1][: len(epochs)]}
        return Trajectory(
            base.model_copy(update={"schedule": schedule, "averaging": averaging, "seed": seed})
        )

    none, ours, _, _, end, _ = AVERAGINGS
    runs = [run([2, 3], none), run([2, 3], end), run([2, 1], ours), run([3, 1], none)]
    assert different_epochs([*runs, run([3, 1], none, seed=1)]) == 3 + 3 + 1 + 1 + 4
