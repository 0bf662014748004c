"""Read the record of one run: config.yaml, metrics.jsonl, result.json.

Reading imports, calls and interpolates nothing that the files name. Readers raise ValueError for a
damaged file or one of another run, and OSError for one that cannot be read.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError

from phaseavg.errors import told
from phaseavg.identity import run_id
from phaseavg.runs.result import phase_ends

Values = dict[str, Any]

DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a damaged record raises."""

CONFIG, METRICS, RESULT = FILES = ("config.yaml", "metrics.jsonl", "result.json")
"""The files of a record."""


class _Provenance(BaseModel):
    execution: Values
    versions: Values
    git: Values


class _Result(BaseModel):
    """The keys that every result has; it may have more."""

    model_config = ConfigDict(strict=True)
    run_id: str
    numerics_version: int
    recipe: Values
    overrides: list[str]
    epochs: int
    seconds: dict[str, float]
    provenance: Annotated[list[_Provenance], Field(min_length=1)]
    inherited: Values


class _Finished(_Result):
    status: Literal["finished"]
    test_error: float
    best_test_error: float
    best_epoch: int
    with_bn_pass: Values
    observers: Values
    images_per_second: float
    phases: Annotated[list[Values], Field(min_length=1)]


class _Diverged(_Result):
    status: Literal["diverged"]
    reason: str
    step: int
    epoch: int
    learning_rate: float


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESULT: TypeAdapter[Any] = TypeAdapter(Annotated[_Finished | _Diverged, Discriminator("status")])


def read_result(folder: Path) -> Values:
    """Return the result in a folder."""
    result = json.loads((folder / RESULT).read_bytes())
    try:
        _RESULT.validate_python(result)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return dict(result)


def read_config(folder: Path) -> Values:
    """Return the config in a folder."""
    try:
        config = yaml.load((folder / CONFIG).read_bytes(), Loader=_YAML)  # noqa: S506 -- it is safe
    except yaml.YAMLError as error:
        raise ValueError(f"{CONFIG} is no plain YAML ({error})") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{CONFIG} holds no mapping")
    return dict(config)


def read_metrics(folder: Path) -> list[Values]:
    """Return the metrics in a folder, a mapping per epoch."""
    return [dict(json.loads(line)) for line in (folder / METRICS).read_bytes().splitlines()]


@dataclass
class Record:
    """What a run has written so far.

    Attributes:
        folder: of the run.
        config: of config.yaml; empty before the run has written it.
        metrics: of metrics.jsonl, a mapping per epoch; empty before the first epoch ends.
        result: of result.json; empty before the run has ended.
    """

    folder: Path
    config: Values = field(default_factory=dict)
    metrics: list[Values] = field(default_factory=list)
    result: Values = field(default_factory=dict)


def read_record(folder: Path) -> Record:
    """Return the record in a folder of a run, which need not have ended.

    Raises:
        ValueError: if a file is damaged, or the files are not all of one run.
        OSError: if a file cannot be read, or a run has ended and one is missing.
    """
    ended = (folder / RESULT).exists()
    record = Record(folder)
    if ended:
        record.result = read_result(folder)
    if ended or (folder / CONFIG).exists():
        record.config = read_config(folder)
    if ended or (folder / METRICS).exists():
        record.metrics = read_metrics(folder)
    if ended:
        _require_one_run(record)
    return record


def _require_one_run(record: Record) -> None:
    result, recipe = record.result, record.result["recipe"]
    if run_id(recipe, result["numerics_version"]) != result["run_id"]:
        raise ValueError(f"{RESULT} has the recipe of another run")
    if not flattened(recipe).items() <= flattened(record.config).items():
        raise ValueError(f"{CONFIG} is not that of {result['run_id']}")
    epochs = [line["epoch"] for line in record.metrics]
    ends = phase_ends(record.metrics)
    if epochs != [*range(1, result["epochs"] + 1)] or result.get("phases", ends) != ends:
        raise ValueError(f"{METRICS} and {RESULT} disagree")


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
    return f"{folder}: a damaged record ({told(error)}); move it away and repeat the run"
