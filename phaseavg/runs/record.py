"""Read the record of one run: config.yaml, metrics.jsonl, result.json.

Files are read as plain data: targets are neither imported nor called, and interpolations are not
resolved. Readers raise `READ_ERRORS`. An ended run has finished or diverged.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from phaseavg.errors import describe
from phaseavg.identity import group_id, part_names, run_id
from phaseavg.runs.provenance import execution_words
from phaseavg.runs.result import summarise_errors

Values = dict[str, Any]

READ_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Exceptions that reading a damaged record may raise."""

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

CONFIG, METRICS, RESULT = FILES = ("config.yaml", "metrics.jsonl", "result.json")
"""The files of a record."""


_COMMON = {
    *("run_id", "numerics_version", "recipe", "overrides", "epochs", "seconds", "provenance"),
    "inherited",
}
REQUIRED_KEYS = {
    "finished": _COMMON
    | {"test_error", "best_test_error", "best_epoch", "with_bn_pass", "observers", "phases"},
    "diverged": _COMMON | {"reason", "step", "epoch", "learning_rate"},
}
"""The keys that a result must have, by status."""


def read_result(folder: Path) -> Values:
    """Return the result in a folder."""
    result = json.loads((folder / RESULT).read_bytes())
    if missing := REQUIRED_KEYS[result["status"]] - result.keys():
        raise ValueError(f"{RESULT} has no key {min(missing)}")
    return dict(result)


def read_config(folder: Path) -> Values:
    """Return the config in a folder."""
    try:
        config = yaml.load((folder / CONFIG).read_bytes(), Loader=_YAML)  # noqa: S506 -- it is safe
    except yaml.YAMLError as error:
        raise ValueError(f"{CONFIG} is not plain YAML ({error})") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{CONFIG} is not a mapping")
    return dict(config)


def read_metrics(folder: Path) -> list[Values]:
    """Return the metrics in a folder, one mapping per epoch."""
    return [dict(json.loads(line)) for line in (folder / METRICS).read_bytes().splitlines()]


class Record(NamedTuple):
    """The record of an ended run: its files, and its row in `load_runs`."""

    folder: Path
    config: Values
    metrics: list[Values]
    result: Values
    row: Values


def read_record(folder: Path) -> Record:
    """Return the record in a run's folder, which is named by the run id.

    Raises:
        OSError: if a file is missing or cannot be read.
        ValueError, LookupError, TypeError, AttributeError, RecursionError: if files are damaged
            or disagree.
    """
    result, config, metrics = read_result(folder), read_config(folder), read_metrics(folder)
    recipe = result["recipe"]
    if result["run_id"] != folder.resolve().name:
        raise ValueError(f"{RESULT} has run_id {result['run_id']}, unlike the folder")
    if (expected := run_id(recipe, result["numerics_version"])) != result["run_id"]:
        raise ValueError(f"{RESULT} has run_id {result['run_id']}, but its recipe gives {expected}")
    if not flatten(recipe).items() <= flatten(config).items():
        raise ValueError(f"{CONFIG} does not contain the recipe in {RESULT}")
    epochs = [line["epoch"] for line in metrics]
    if epochs != [*range(1, result["epochs"] + 1)]:
        raise ValueError(f"{METRICS} does not have the {result['epochs']} epochs of {RESULT}")
    # The configs of the observers are not in the metrics.
    derived = summarise_errors(metrics, {}) if result["status"] == "finished" else {}
    for key in derived.keys() - {"observers"}:
        if result[key] != derived[key]:
            raise ValueError(f"{key} in {RESULT} does not follow from {METRICS}")
    return Record(folder, config, metrics, result, _row(folder, config, result))


def _row(folder: Path, config: Values, result: Values) -> Values:
    """Return the row of an ended run in `phaseavg.runs.records.load_runs`."""
    settings = {key: value for key, value in flatten(config).items() if key != "seed"}

    def joined(kind: str, key: str, default: object = None) -> str:
        entries = (str(entry[kind].get(key, default)) for entry in result["provenance"])
        return " + ".join(dict.fromkeys(entries))

    threads, precision = joined("execution", "threads"), joined("execution", "precision")
    processes, torch = joined("execution", "processes", 1), joined("versions", "torch")
    options = {**config.get("execution", {}), "precision": precision, "processes": processes}
    hardware = [joined("execution", "device_name"), joined("execution", "cpu_capability")]
    hardware.append(f"{threads} {'thread' if threads == '1' else 'threads'}")
    return {
        "run_id": result["run_id"],
        "group": group_id(result["recipe"]),
        **part_names(config),
        "seed": config["seed"],
        "numerics_version": result["numerics_version"],
        "status": result["status"],
        "test_error": result.get("test_error"),
        "best_test_error": result.get("best_test_error"),
        "bn_test_error": result.get("with_bn_pass", {}).get("test_error"),
        "epochs": result["epochs"],
        "seconds": result["seconds"]["total"],
        "inherited_epochs": result["inherited"]["epochs"],
        "inherited_seconds": result["inherited"]["seconds"],
        "method_seconds": sum(result["seconds"].get(kind, 0.0) for kind in ("train", "averaging")),
        "averaging_seconds": result["seconds"].get("averaging", 0.0),
        "device": joined("execution", "device"),
        "device_name": joined("execution", "device_name"),
        "cpu_capability": joined("execution", "cpu_capability"),
        "threads": threads,
        "processes": processes,
        "precision": precision,
        "torch": torch,
        "commit": joined("git", "commit"),
        "modified": joined("git", "modified"),
        "overrides": shlex.join(result["overrides"]),
        "path": folder,
        "execution": ", ".join([*hardware, *execution_words(options), f"torch {torch}"]),
        **{key: str(item) if isinstance(item, list) else item for key, item in settings.items()},
    }


def flatten(values: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Return a flat mapping, with nested keys joined by a separator."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, separator, f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def intact_records(*folders: Path | str) -> Iterator[Record]:
    """Yield the records of the ended runs in folders, folder by folder, sorted by name.

    Damaged records are skipped, and reported in one line each on stderr.

    Args:
        folders: run folders, or their parents; missing folders are ignored.
    """
    for folder in (run for parent in folders for run in _ended_in(Path(parent))):
        try:
            record = read_record(folder)
        except READ_ERRORS as error:
            print(damage_message(folder, error), file=sys.stderr, flush=True)
        else:
            yield record


def _ended_in(folder: Path) -> list[Path]:
    if (folder / RESULT).is_file():
        return [folder]
    paths = sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
    return [path for path in paths if not path.name.startswith(".")]  # not incomplete copies


def damage_message(folder: Path, error: Exception) -> str:
    """Return a one-line message about a damaged record."""
    return f"{folder}: a damaged record ({describe(error)}); move it elsewhere and rerun"
