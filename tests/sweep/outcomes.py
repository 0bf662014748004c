"""What the runs of a sweep have left, and a short run to compare."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from conftest import TIMES, TINY, assert_same_weights, untimed

SHORT = (*TINY, "checkpoint_seconds=1000", "save_weights=true", "batch_size=250")
"""A run of 4 steps an epoch."""

VOLATILE = (*TIMES, "peak_memory_bytes", "provenance", "inherited")
"""The times in a result, and other values that differ between attempts."""


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


def outcomes(folder: Path) -> dict[str, Any]:
    """Return saved weights, metrics and results of all runs in a folder, without `VOLATILE`."""
    found = {}
    for path in folder.glob("*/result.json"):
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        metrics = [untimed(json.loads(line)) for line in lines]
        result = untimed(json.loads(path.read_text()), VOLATILE)
        result.pop("overrides")  # runs_dir apart, they may name share=false
        saved = path.parent / "weights.safetensors"
        weights = safetensors.torch.load_file(saved) if saved.exists() else {}
        found[path.parent.name] = (weights, metrics, result)
    return found


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected, "no run has finished"
    for run_id, (weights, metrics, result) in expected.items():
        assert_same_weights(actual[run_id][0], weights)
        assert actual[run_id][1:] == (metrics, result), run_id


def inherited(folder: Path) -> dict[str, int]:
    """Return the inherited epochs of the runs in a folder, by averaging."""
    return {r["run_id"].split("-")[3]: r["inherited"]["epochs"] for r in results(folder)}
