"""Read the record of one run: config.yaml, metrics.jsonl, result.json.

Reading never imports, calls or interpolates what the files contain. Readers raise `READ_ERRORS`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from phaseavg.errors import describe
from phaseavg.identity import run_id
from phaseavg.runs.result import errors

Values = dict[str, Any]

READ_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""Exceptions that reading a damaged record may raise."""

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

CONFIG, METRICS, RESULT = FILES = ("config.yaml", "metrics.jsonl", "result.json")
"""The files of a record."""


_ENDED = {
    *("run_id", "numerics_version", "recipe", "overrides", "epochs", "seconds", "provenance"),
    "inherited",
}
KEYS = {
    "finished": _ENDED
    | {"test_error", "best_test_error", "best_epoch", "with_bn_pass", "observers", "phases"},
    "diverged": _ENDED | {"reason", "step", "epoch", "learning_rate"},
}
"""The keys that a result must have, by status."""


def read_result(folder: Path) -> Values:
    """Return the result in a folder."""
    result = json.loads((folder / RESULT).read_bytes())
    if missing := KEYS[result["status"]] - result.keys():
        raise ValueError(f"{RESULT} has no {min(missing)}")
    return dict(result)


def read_config(folder: Path) -> Values:
    """Return the config in a folder."""
    try:
        config = yaml.load((folder / CONFIG).read_bytes(), Loader=_YAML)  # noqa: S506 -- it is safe
    except yaml.YAMLError as error:
        raise ValueError(f"{CONFIG} is not plain YAML ({error})") from error
    return dict(config)


def read_metrics(folder: Path) -> list[Values]:
    """Return the metrics in a folder, one mapping per epoch."""
    return [dict(json.loads(line)) for line in (folder / METRICS).read_bytes().splitlines()]


class Record(NamedTuple):
    """The record of an ended run: config.yaml, the lines of metrics.jsonl, and result.json."""

    folder: Path
    config: Values
    metrics: list[Values]
    result: Values


def read_record(folder: Path) -> Record:
    """Return the record in a folder.

    Raises:
        OSError: if a file is missing or cannot be read.
        ValueError, LookupError, TypeError, AttributeError: if files are damaged or disagree.
    """
    result, config, metrics = read_result(folder), read_config(folder), read_metrics(folder)
    recipe = result["recipe"]
    if (expected := run_id(recipe, result["numerics_version"])) != result["run_id"]:
        raise ValueError(f"{RESULT} has run_id {result['run_id']}, but its recipe gives {expected}")
    if not flatten(recipe).items() <= flatten(config).items():
        raise ValueError(f"{CONFIG} does not contain the recipe in {RESULT}")
    epochs = [line["epoch"] for line in metrics]
    if epochs != [*range(1, result["epochs"] + 1)]:
        raise ValueError(f"{METRICS} does not have the {result['epochs']} epochs of {RESULT}")
    derived = errors(metrics, {}) if result["status"] == "finished" else {}
    for key in derived.keys() - {"observers"}:
        if result[key] != derived[key]:
            raise ValueError(f"{key} in {RESULT} does not follow from {METRICS}")
    return Record(folder, config, metrics, result)


def flatten(values: Mapping[str, Any], separator: str = ".", path: str = "") -> dict[str, Any]:
    """Return a flat mapping, with nested keys joined by a separator."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, separator, f"{path}{key}{separator}")
        else:
            flat[f"{path}{key}"] = value
    return flat


def intact_records(*folders: Path | str) -> Iterator[Record]:
    """Yield the records of the ended runs in folders, sorted by folder and name.

    Damaged records are skipped, and reported in one line each on stderr.

    Args:
        folders: folders of runs or records, or run folders; missing folders are ignored.
    """
    for folder in (run for parent in folders for run in _ended_in(Path(parent))):
        try:
            record = read_record(folder)
            if record.result["run_id"] != folder.resolve().name:
                raise ValueError(f"{RESULT} has run_id {record.result['run_id']}")
        except READ_ERRORS as error:
            print(damage(folder, error), file=sys.stderr, flush=True)
        else:
            yield record


def _ended_in(folder: Path) -> list[Path]:
    if (folder / RESULT).is_file():
        return [folder]
    paths = sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
    return [path for path in paths if not path.name.startswith(".")]  # incomplete copies


def damage(folder: Path, error: Exception) -> str:
    """Return a one-line message about a damaged record."""
    return f"{folder}: a damaged record ({describe(error)}); move it elsewhere and rerun"
