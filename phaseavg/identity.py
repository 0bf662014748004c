"""Run ids: the same recipe has the same id, today and on another machine."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

NUMERICS_VERSION = 1
"""Bumped by hand when a change of the code gives other numbers for the same recipe."""

RECIPE = (
    *("dataset", "model", "optimizer", "schedule", "averaging"),
    *("batch_size", "batchnorm_batches", "optimizer_state", "seed"),
)
"""The keys of a config that shape the numbers of its run, and so its id."""

USUAL = ("exponential", "sgd")
"""What goes without saying inside of another part: the paper's weights, Lookahead's optimizer."""


def _short(part: Mapping[str, Any]) -> str:
    """Return the last part of a target's name, and those of the unusual parts in it."""
    parts = [value for value in part.values() if isinstance(value, Mapping) and "_target_" in value]
    inner = [name for name in map(_short, parts) if name not in USUAL]
    own = part["_target_"].rpartition(".")[2].lower()
    return "_".join([own, *inner])


def parts_of(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the short names of a recipe's data set, network, optimizer and averaging.

    An optimizer is also named by what is switched on in it: `adam_amsgrad`, `sgd_nesterov`.
    """
    names = {part: _short(recipe[part]) for part in ("dataset", "model", "optimizer", "averaging")}
    switches = [key for key, value in recipe["optimizer"].items() if value is True]
    return names | {"optimizer": "_".join([names["optimizer"], *switches])}


def _digest(recipe: Mapping[str, Any], version: int | None = None) -> str:
    numerics = NUMERICS_VERSION if version is None else version
    canonical = json.dumps({"numerics_version": numerics, **recipe}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def run_id(recipe: Mapping[str, Any], version: int | None = None) -> str:
    """Return a readable name that ends in a hash of the recipe.

    Args:
        recipe: JSON-like, without values that equal their defaults (`Settings.recipe`), so that a
            new option changes no id. Its parts and its seed give the readable half.
        version: of the numerics, where it is not that of this code.
    """
    digest = _digest(recipe, version)
    return "-".join([*parts_of(recipe).values(), f"seed{recipe['seed']}", digest])


def group_id(recipe: Mapping[str, Any]) -> str:
    """Return the same without the seed: what all repetitions of a run have in common."""
    seedless = {key: value for key, value in recipe.items() if key != "seed"}
    return "-".join([*parts_of(recipe).values(), _digest(seedless)])
