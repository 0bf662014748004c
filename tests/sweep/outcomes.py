"""What the runs of a sweep have left, and a short run to compare."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from conftest import TINY

SHORT = (*TINY, "checkpoint_seconds=1000", "save_weights=true", "batch_size=250")
"""A run of 4 steps an epoch."""

VOLATILE = ("seconds", "images_per_second", "peak_memory_bytes", "provenance", "inherited")


def without_times(value: Any) -> Any:
    """Remove the times, and other values that differ between attempts, from a record."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in VOLATILE}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


def outcomes(folder: Path) -> dict[str, Any]:
    """Return saved weights, metrics and results of all runs in a folder, without times."""
    found = {}
    for path in folder.glob("*/result.json"):
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        metrics = [without_times(json.loads(line)) for line in lines]
        result = without_times(json.loads(path.read_text()))
        result.pop("overrides")  # runs_dir apart, they may name share=false
        saved = path.parent / "weights.safetensors"
        weights = safetensors.torch.load_file(saved) if saved.exists() else {}
        found[path.parent.name] = (weights, metrics, result)
    return found


def assert_equal(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for run_id, (weights, metrics, result) in expected.items():
        for name, tensor in weights.items():
            assert torch.equal(actual[run_id][0][name], tensor), (run_id, name)
        assert actual[run_id][1:] == (metrics, result), run_id


def inherited(folder: Path) -> dict[str, int]:
    """Return the inherited epochs of the runs in a folder, by averaging."""
    return {r["run_id"].split("-")[3]: r["inherited"]["epochs"] for r in results(folder)}
