"""Run ids depend only on the recipe, not on its execution or spelling."""

import re

import pytest
from conftest import TINY, Compose

from phaseavg import averaging, identity, targets
from phaseavg.identity import run_id


def id_of(compose_settings: Compose, *overrides: str) -> str:
    return compose_settings(*TINY, *overrides).run_id


@pytest.mark.parametrize(
    "override",
    [
        "execution.device=cpu",
        "evaluation.every=7",
        "+averaging@observers.swa=uniform",
        "runs_dir=elsewhere",
        "save_weights=true",
        "model.width=3e-2",  # another spelling of the same number
        "schedule.factors=[1.0,0.1,0.01]",
    ],
)
def test_execution_and_spelling_do_not_change_the_id(
    compose_settings: Compose, override: str
) -> None:
    assert id_of(compose_settings, override) == id_of(compose_settings)


CHANGES = {  # another value for each key of the recipe
    "dataset": {"label_noise": 0.1},
    "model": {"width": 0.04},
    "optimizer": {"nesterov": True},
    "schedule": {"factors": [1.0, 0.1, 0.02]},
    "averaging": {"weights": {"_target_": "phaseavg.averaging.Exponential", "gamma0": 0.95}},
    "batch_size": 64,
    "batchnorm_batches": 2,
    "optimizer_state": "reset",
    "seed": 1,
}


def test_each_change_of_the_recipe_changes_the_id(compose_settings: Compose) -> None:
    settings = compose_settings(*TINY)
    ids = {settings.run_id}
    for key in identity.RECIPE:
        value, changed = getattr(settings, key), CHANGES[key]
        other = {**value, **changed} if isinstance(value, dict) else changed
        ids.add(settings.model_copy(update={key: other}).run_id)
    assert len(ids) == 1 + len(identity.RECIPE)


def test_a_new_option_does_not_change_ids_until_it_is_set(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compose_settings(*TINY).run_id

    class Exponential(averaging.Exponential):
        def __init__(self, gamma0: float = 0.9, newer: float = 0.5) -> None:
            super().__init__(gamma0)

    monkeypatch.setattr(averaging, "Exponential", Exponential)
    targets._defaults.cache_clear()
    try:
        assert id_of(compose_settings) == before
        assert id_of(compose_settings, "+averaging.weights.newer=0.5") == before
        assert id_of(compose_settings, "+averaging.weights.newer=0.4") != before
    finally:
        targets._defaults.cache_clear()


def test_the_numerics_version_changes_the_id(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = id_of(compose_settings)
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    assert id_of(compose_settings) != before


def test_ids_are_stable(compose_settings: Compose) -> None:
    """If this id changes, users lose their runs: change NUMERICS_VERSION deliberately instead."""
    settings = compose_settings("dataset=cifar100", "seed=2")
    assert settings.run_id == "cifar100-resnet34-sgd-phasewise-seed2-634fb6e484"
    recipe = settings.recipe()
    assert run_id(dict(reversed(recipe.items()))) == run_id(recipe)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["optimizer.nesterov=true"], "digits-cnn13-sgd_nesterov-phasewise"),
        (["averaging=end", "averaging/weights=uniform"], "digits-cnn13-sgd-atend_uniform"),
        (
            ["optimizer=lookahead", "optimizer@optimizer.inner=adam"],
            "digits-cnn13-lookahead_adam-phasewise",
        ),
    ],
)
def test_an_id_names_unusual_parts_of_a_part(
    compose_settings: Compose, overrides: list[str], name: str
) -> None:
    assert re.fullmatch(f"{name}-seed0-[0-9a-f]{{10}}", id_of(compose_settings, *overrides))


def test_an_id_names_the_network_of_timm(compose_settings: Compose) -> None:
    settings = compose_settings("dataset=digits", "model=timm", "model.name=resnet18")
    assert settings.run_id.startswith("digits-timm_model_resnet18-sgd-")
