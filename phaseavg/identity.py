"""Compute run ids from recipes, independently of the machine."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

NUMERICS_VERSION = 1
"""Increase this when a code change alters the results of an unchanged recipe."""

RECIPE = (
    *("dataset", "model", "optimizer", "schedule", "averaging"),
    *("batch_size", "batchnorm_batches", "optimizer_state", "seed"),
)
"""The config keys that determine the results of a run; they enter its id."""

DEFAULT_NAMES = ("exponential", "sgd")
"""Nested parts that a run id omits: the paper's coefficients, Lookahead's inner optimizer."""


def _short_name(part: Mapping[str, Any]) -> str:
    """Return a part's class name, its option `name`, and its nested parts that are not defaults."""
    parts = [value for value in part.values() if isinstance(value, Mapping) and "_target_" in value]
    inner = [name for name in map(_short_name, parts) if name not in DEFAULT_NAMES]
    own = (part["_target_"].rpartition(".")[2], part.get("name"))
    words = [re.sub(r"\W+", "_", str(word).lower()) for word in own if word]
    return "_".join([*words, *inner])


def part_names(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the short names of a recipe's data set, network, optimizer and averaging.

    The name of an optimizer includes its options that are true: `adam_amsgrad`, `sgd_nesterov`.
    """
    parts = ("dataset", "model", "optimizer", "averaging")
    names = {part: _short_name(recipe[part]) for part in parts}
    switches = [key for key, value in recipe["optimizer"].items() if value is True]
    return names | {"optimizer": "_".join([names["optimizer"], *switches])}


def _digest(recipe: Mapping[str, Any], version: int | None = None) -> str:
    numerics = NUMERICS_VERSION if version is None else version
    canonical = json.dumps({"numerics_version": numerics, **recipe}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def run_id(recipe: Mapping[str, Any], version: int | None = None) -> str:
    """Return a readable name that ends in a hash of the recipe.

    Args:
        recipe: a JSON-like mapping without default values (`Settings.recipe`), so that a new option
            does not change existing ids.
        version: the numerics version; None for `NUMERICS_VERSION`.
    """
    digest = _digest(recipe, version)
    return "-".join([*part_names(recipe).values(), f"seed{recipe['seed']}", digest])


def group_id(recipe: Mapping[str, Any]) -> str:
    """Return the run id without the seed; all seeds of a recipe share it."""
    seedless = {key: value for key, value in recipe.items() if key != "seed"}
    return "-".join([*part_names(recipe).values(), _digest(seedless)])
