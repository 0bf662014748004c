"""Run ids: the same recipe has the same id, today and on another machine."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

NUMERICS_VERSION = 1
"""Bumped by hand when a change of the code gives other numbers for the same recipe."""


def run_id(recipe: Mapping[str, Any]) -> str:
    """Return a readable name that ends in a hash of the whole recipe.

    Args:
        recipe: JSON-like; of its parts, `dataset`, `model`, `optimizer` and `averaging` give the
            readable half, and `seed`.
    """
    canonical = json.dumps({"numerics_version": NUMERICS_VERSION, **recipe}, sort_keys=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
    names = [
        recipe[part]["_target_"].rpartition(".")[2].lower()
        for part in ("dataset", "model", "optimizer", "averaging")
    ]
    return "-".join([*names, f"seed{recipe['seed']}", digest])
