"""Read the record of one run: config.yaml, metrics.jsonl, result.json.

Reading imports, calls and interpolates nothing that the files name. Readers raise `DAMAGED`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from phaseavg.errors import describe
from phaseavg.identity import run_id
from phaseavg.runs.result import phase_ends

Values = dict[str, Any]

DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a damaged record raises."""

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
"""The keys that a result must have, by its status."""


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
        raise ValueError(f"{CONFIG} is no plain YAML ({error})") from error
    return dict(config)


def read_metrics(folder: Path) -> list[Values]:
    """Return the metrics in a folder, a mapping per epoch."""
    return [dict(json.loads(line)) for line in (folder / METRICS).read_bytes().splitlines()]


class Record(NamedTuple):
    """What an ended run has written: config.yaml, metrics.jsonl by line, and result.json."""

    folder: Path
    config: Values
    metrics: list[Values]
    result: Values


def read_record(folder: Path) -> Record:
    """Return the record in a folder.

    Raises:
        OSError: if a file is missing or cannot be read.
        ValueError, LookupError, TypeError, AttributeError: if a file is damaged or of another run.
    """
    result, config, metrics = read_result(folder), read_config(folder), read_metrics(folder)
    recipe, ends = result["recipe"], phase_ends(metrics)
    if run_id(recipe, result["numerics_version"]) != result["run_id"]:
        raise ValueError(f"{RESULT} has the recipe of another run")
    if not flattened(recipe).items() <= flattened(config).items():
        raise ValueError(f"{CONFIG} is not that of {result['run_id']}")
    epochs = [line["epoch"] for line in metrics]
    if epochs != [*range(1, result["epochs"] + 1)] or result.get("phases", ends) != ends:
        raise ValueError(f"{METRICS} and {RESULT} disagree")
    return Record(folder, config, metrics, result)


def flattened(values: Mapping[str, Any], joint: str = ".", path: str = "") -> dict[str, Any]:
    """Return the values in nested mappings by their keys, joined with dots or another sign."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, joint, f"{path}{key}{joint}")
        else:
            flat[f"{path}{key}"] = value
    return flat


def intact_records(*folders: Path | str) -> Iterator[Record]:
    """Yield the records of the ended runs in folders, by folder and name.

    A damaged record is left out, and reported in one line on stderr.

    Args:
        folders: of runs or records, or of a single run; missing folders hold none.
    """
    for folder in (ended for given in folders for ended in _ended_in(Path(given))):
        try:
            record = read_record(folder)
            if record.result["run_id"] != folder.resolve().name:
                raise ValueError(f"result.json is of another run, {record.result['run_id']}")
        except DAMAGED as error:
            print(damage(folder, error), file=sys.stderr, flush=True)
        else:
            yield record


def _ended_in(folder: Path) -> list[Path]:
    if (folder / RESULT).is_file():
        return [folder]
    paths = sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
    return [path for path in paths if not path.name.startswith(".")]  # half copied


def damage(folder: Path, error: Exception) -> str:
    """Return a line about a damaged record."""
    return f"{folder}: a damaged record ({describe(error)}); move it away and repeat the run"
