"""The same recipe has the same id; execution has no part in it."""

import re
from collections.abc import Callable

import pytest
from conftest import TINY

from phaseavg.config import Settings
from phaseavg.runs import identity
from phaseavg.runs.identity import run_id

Compose = Callable[..., Settings]


def id_of(compose_settings: Compose, *overrides: str) -> str:
    return run_id(compose_settings(*TINY, *overrides).recipe())


@pytest.mark.parametrize(
    "override",
    [
        "execution.device=cpu",
        "execution.precision=bf16",
        "execution.compile=true",
        "evaluation.every=7",
        "evaluation.average_every=3",
        "checkpoint_seconds=1",
        "evaluation.batchnorm_every=2",
        "+averaging@watch.swa=uniform",
        "data_dir=elsewhere",
        "runs_dir=elsewhere",
        "weights=final",
        "force=true",
        "model.width=3e-2",  # the same number, otherwise written
        "schedule.factors=[1.0,0.1,0.01]",
        "weight_decay=0.0001",
    ],
)
def test_execution_and_spelling_leave_the_id_alone(
    compose_settings: Compose, override: str
) -> None:
    assert id_of(compose_settings, override) == id_of(compose_settings)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "batch_size=64",
        "batchnorm_batches=2",
        "dataset.label_noise=0.1",
        "model.width=0.04",
        "optimizer.lr=0.05",
        "optimizer.momentum=0.8",
        "weight_decay=5e-4",
        "schedule.epochs=[2,1,2]",
        "schedule.factors=[1,0.1,0.02]",
        "averaging=none",
        "averaging=end",
        "averaging.weights.gamma0=0.95",
        "averaging=uniform",
        "averaging/weights=rna",
        "optimizer=lookahead",
        "optimizer=amsgrad",
        "optimizer_state=reset",
        "schedule=decayed",
    ],
)
def test_every_part_of_the_recipe_changes_the_id(compose_settings: Compose, override: str) -> None:
    assert id_of(compose_settings, override) != id_of(compose_settings)


def test_the_numerics_version_changes_the_id(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = id_of(compose_settings)
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    assert id_of(compose_settings) != before


def test_ids_read_as_what_they_are_and_stay_what_they_were() -> None:
    """A change of this id orphans everybody's runs: bump NUMERICS_VERSION on purpose, not here."""
    parts = {
        name: {"_target_": target}
        for name, target in {
            "dataset": "phaseavg.data.cifar100",
            "model": "phaseavg.models.resnet34",
            "optimizer": "torch.optim.SGD",
            "schedule": "phaseavg.phases.Schedule",
            "averaging": "phaseavg.averaging.Phasewise",
        }.items()
    }
    recipe = {**parts, "batch_size": 128, "batchnorm_batches": None, "seed": 2}
    assert run_id(recipe) == "cifar100-resnet34-sgd-phasewise-seed2-336bd2143e"
    assert run_id(dict(reversed(recipe.items()))) == run_id(recipe)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "digits-cnn13-sgd-phasewise"),
        (["averaging=rna"], "digits-cnn13-sgd-phasewise_rna"),
        (["optimizer=amsgrad"], "digits-cnn13-adam_amsgrad-phasewise"),
        (["optimizer.nesterov=true"], "digits-cnn13-sgd_nesterov-phasewise"),
        (["averaging=end", "averaging/weights=uniform"], "digits-cnn13-sgd-atend_uniform"),
        (["optimizer=lookahead", "averaging=none"], "digits-cnn13-lookahead-noaveraging"),
        (
            ["optimizer=lookahead", "optimizer@optimizer.inner=adam"],
            "digits-cnn13-lookahead_adam-phasewise",
        ),
    ],
)
def test_an_id_names_the_parts_in_a_part_unless_they_are_the_usual(
    compose_settings: Compose, overrides: list[str], name: str
) -> None:
    assert re.fullmatch(f"{name}-seed0-[0-9a-f]{{10}}", id_of(compose_settings, *overrides))
