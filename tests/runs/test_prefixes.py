"""Prefixes: keys are equal if and only if the epochs are; damaged files are not used."""

from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conftest import TINY, composed

from phaseavg.atomic import checksum
from phaseavg.config import Settings, check
from phaseavg.phases import Schedule
from phaseavg.runs.folder import RunFolder
from phaseavg.runs.prefixes import (
    Prefixes,
    execution_of,
    identity_of,
    load,
    saved,
)
from phaseavg.targets import Part, build

STEPS = 3
"""Updates per epoch in the reference."""


@pytest.fixture(scope="module")
def base() -> Settings:
    return check(composed(*TINY).copy())


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


def changes(random: Random) -> dict[str, Any]:
    """Draw changes to the base settings, from few choices, so that prefixes are often equal."""
    choose = random.choice
    epochs = [choose([1, 2, 3]) for _ in range(choose([1, 2, 3]))]
    factors = [choose([1.0, 1.0, 0.1]) for _ in epochs]
    schedule = {"_target_": f"{PHASES}.Schedule", "epochs": epochs, "factors": factors}
    if shape := choose([None, *SHAPES]):
        schedule["shape"] = shape
    return {
        "schedule": schedule,
        "averaging": choose(AVERAGINGS),
        "optimizer_state": choose(["keep", "reset"]),
        "batchnorm_batches": choose([None, None, 2]),
        "seed": choose([0, 0, 0, 1]),
        "weight_decay": choose([0.0, 1.0]),  # is in the recipe with the optimizer
        "observers": choose([{}, {"ours": AVERAGINGS[1]}]),
    }


def reference_epochs(settings: Settings, epochs: int) -> list[Any]:
    """Return the reference: the settings that affect each step of each epoch."""
    schedule = build("schedule", settings.schedule, Schedule)
    fixed = (settings.dataset, settings.model, settings.optimizer, settings.batch_size)
    tested = settings.batchnorm_batches
    found = []
    for epoch in range(epochs):
        rates = [schedule.factor(epoch * STEPS + step, STEPS) for step in range(STEPS)]
        phase = schedule.phase(epoch)
        before = []  # between the last epoch's last update and this one's first
        if epoch == phase.first_epoch and phase.index > 0:
            before.append(("phase", settings.optimizer_state))
        found.append((settings.seed, fixed, tested, before, rates))
    return found


def test_keys_are_equal_if_and_only_if_the_epochs_are(base: Settings) -> None:
    random, found = Random(0), []
    for _ in range(400):
        one, other = changes(random), changes(random)
        mixed = {key: random.choice([value, other[key]]) for key, value in one.items()}
        left = base.model_copy(update=one)
        optimizer = {**base.optimizer, "lr": random.choice([0.1, 0.1, 0.2])}
        right = base.model_copy(update={**mixed, "optimizer": optimizer})
        left_run, right_run = Prefixes(left), Prefixes(right)
        for epochs in range(1, min(left_run.limit, right_run.limit) + 1):
            equal = reference_epochs(left, epochs) == reference_epochs(right, epochs)
            assert (left_run.key(epochs) == right_run.key(epochs)) == equal, (left, right, epochs)
            found.append(equal)
    assert min(found.count(True), found.count(False)) > 200


class WarmUp(Schedule):
    """A user's schedule with another rate in its first epoch."""

    def factor(self, step: int, steps_per_epoch: int) -> float:
        return 0.1 if step < steps_per_epoch else super().factor(step, steps_per_epoch)


UNKNOWN = {"_target_": "phaseavg.averaging.Averager"}
"""An averaging whose windows are unknown."""

OWN_SCHEDULE = {"_target_": f"{__name__}.WarmUp", "epochs": [2, 2, 1], "factors": [1, 0.1, 0.01]}


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        *zip([{"averaging": a} for a in AVERAGINGS], [5, 2, 2, 2, 5, 5], strict=True),
        ({"averaging": UNKNOWN}, 0),
        ({"observers": {"mine": UNKNOWN}}, 0),
        ({"schedule": OWN_SCHEDULE}, 0),
    ],
)
def test_a_run_shares_until_its_weights_are_replaced_if_its_windows_and_rates_are_known(
    base: Settings, changes: dict[str, Any], limit: int
) -> None:
    assert Prefixes(base.model_copy(update=changes)).limit == limit


@pytest.mark.parametrize("name", ["dataset", "model", "optimizer"])
def test_every_argument_of_a_part_changes_the_key(base: Settings, name: str) -> None:
    part = getattr(base, name)
    for key, value in part.items():
        other = "torch.nn.Module" if key == "_target_" else f"not {value}"
        changed = base.model_copy(update={name: {**part, key: other}})
        assert Prefixes(changed).key(1) != Prefixes(base).key(1), key


def test_averages_with_equal_windows_have_equal_identities() -> None:
    def identity(part: Part, epochs: list[int], end: int) -> str | None:
        return identity_of({**part, "epochs": epochs}, end)

    ours, end, phase = AVERAGINGS[1], *AVERAGINGS[4:]
    assert identity(ours, [80], 80) == identity(ours, [80, 40, 40], 60)
    assert identity(ours, [80], 60) != identity(ours, [60, 30, 30], 60)
    assert identity(ours, [80], 80) != identity(AVERAGINGS[2], [80], 80)
    assert identity(end, [80, 40, 40], 80) != identity(end, [80], 80)
    assert identity(end, [80, 40, 40], 1) == identity(end, [80, 40, 40], 160)
    assert identity(phase, [80, 40, 40], 120) is None
    assert identity(phase, [80, 40, 40], 121) is not None
    assert identity(AVERAGINGS[0], [80], 80) is None


def test_the_execution_includes_all_that_can_change_results(base: Settings) -> None:
    cpu = torch.device("cpu")

    def changed(**execution: Any) -> Settings:
        return base.model_copy(update={"execution": base.execution.model_copy(update=execution)})

    def execution(**options: Any) -> dict[str, Any]:
        return execution_of(changed(**options), cpu)

    assert execution() == execution(workers=3) == execution(device="cpu")
    changes = [{"precision": "bf16"}, {"compile": True}, {"channels_last": True}]
    changes.append({"deterministic": False})
    assert all(execution(**change) != execution() for change in changes)
    one_thread = execution()
    torch.set_num_threads(2)
    try:
        assert execution() != one_thread
    finally:
        torch.set_num_threads(1)


KEY = "0123456789abcdef"
CONTENT = b"weights of an epoch"
NAMES = {"identity": [f"snapshots/snapshot-0001-{checksum(CONTENT)}.pt"]}


def save_prefix(folder: Path) -> Path:
    """Save a prefix with a snapshot, and return its file."""
    (name,) = NAMES["identity"]
    prefix = {"key": KEY, "averages": NAMES, "execution": {}}
    with RunFolder(folder / f"{KEY}-2/digest/run") as run:
        run.save_checkpoint(4, {"step": 4})
        (run.path / "snapshots").mkdir()
        (run.path / name).write_bytes(CONTENT)
        state = {"step": 8, "weights": torch.arange(3.0), "prefix": prefix}
        run.save_checkpoint(8, state, [run.path / name])
        return max(run.path.glob("*.pt"))


def test_a_saved_prefix_is_found_by_its_key(tmp_path: Path) -> None:
    path = save_prefix(tmp_path)
    (found,) = saved(tmp_path, KEY, 2)
    assert (found.path, found.averages, found.execution) == (path, NAMES, {})
    state = load(found, NAMES)
    assert state is not None
    assert torch.equal(state["weights"], torch.arange(3.0))
    assert not list(saved(tmp_path, KEY, 3))
    assert not list(saved(tmp_path / "nowhere", KEY, 2))


@pytest.mark.parametrize(
    ("file", "half"), [("prefix", False), ("prefix", True), ("snapshot", False)]
)
def test_a_damaged_prefix_is_reported_and_renamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, half: bool
) -> None:
    path = save_prefix(tmp_path)
    (snapshot,) = (path.parent / "snapshots").iterdir()
    damaged = path if file == "prefix" else snapshot
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content[: len(content) // 2] if half else content)
    assert [load(found, NAMES) for found in saved(tmp_path, KEY, 2)] in ([], [None])
    assert f"{damaged}: damaged" in capsys.readouterr().out
    assert damaged.with_name(f"{damaged.name}.damaged").exists()
    assert not list(saved(tmp_path, KEY, 2))


def test_damage_of_an_average_that_a_run_does_not_need_is_ignored(tmp_path: Path) -> None:
    path = save_prefix(tmp_path)
    (snapshot,) = (path.parent / "snapshots").iterdir()
    snapshot.write_bytes(b"damaged")
    (found,) = saved(tmp_path, KEY, 2)
    assert load(found, ()) is not None


def test_a_prefix_that_cannot_be_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_prefix(tmp_path)
    (found,) = saved(tmp_path, KEY, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", Mock(side_effect=OSError(116, "Stale file handle")))
        assert load(found, NAMES) is None
    assert f"{path}: cannot be read (Stale file handle)" in capsys.readouterr().out
    assert load(found, NAMES) is not None


def test_a_prefix_removed_during_loading_is_ignored(tmp_path: Path) -> None:
    path = save_prefix(tmp_path)
    (found,) = saved(tmp_path, KEY, 2)
    path.unlink()
    assert load(found, NAMES) is None
