"""Read the record of one run: config.yaml, metrics.jsonl, result.json.

The files are plain data and are checked, whoever wrote them: nothing that they name is imported,
called or interpolated. Readers raise ValueError for a file that is damaged or of another run, and
OSError for one that cannot be read.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError

from phaseavg.errors import told
from phaseavg.identity import run_id
from phaseavg.runs.files import load_json, load_yaml, read_file

Values = dict[str, Any]

DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a file raises that is cut off, or was written by another program."""

CONFIG, METRICS, RESULT = FILES = ("config.yaml", "metrics.jsonl", "result.json")
"""The files of a record."""


class _Keys(BaseModel):
    model_config = ConfigDict(strict=True)


class _Test(_Keys):
    loss: float | None = None
    error: float | None = None


class _AverageTest(_Test):
    without_bn: _Test | None = None
    coefficients: list[float] | None = None


class _Line(_Keys):
    epoch: int
    phase: int
    step: int
    learning_rate: float
    train: _Test
    weights: _Test | None = None
    bn: _Test | None = None
    average: _AverageTest | None = None
    observers: dict[str, _AverageTest] = {}
    replaced: bool | None = None
    images_per_second: float | None = None
    seconds: dict[str, float] = {}


class _Made(_Keys):
    execution: Values
    versions: Values
    git: Values


class _Error(_Keys):
    error: float


class _PhaseEnd(_Keys):
    epoch: int
    replaced: bool
    weights: _Error
    bn: _Error


class _Segment(_Keys):
    trajectory: str
    prefix: str
    first_epoch: int
    last_epoch: int
    seconds: float


class _Inherited(_Keys):
    epochs: int
    seconds: float
    segments: list[_Segment]


class _Seconds(_Keys):
    total: float
    train: float = 0.0
    averaging: float = 0.0


class _Outcome(_Keys):
    run_id: str
    numerics_version: int
    recipe: Values
    overrides: list[str]
    epochs: int
    seconds: _Seconds
    provenance: Annotated[list[_Made], Field(min_length=1)]
    inherited: _Inherited


class _Finished(_Outcome):
    status: Literal["finished"]
    test_error: float
    best_test_error: float
    best_epoch: int
    with_bn_pass: Values
    observers: Values
    images_per_second: float
    phases: Annotated[list[_PhaseEnd], Field(min_length=1)]


class _Diverged(_Outcome):
    status: Literal["diverged"]
    reason: str
    step: int
    epoch: int
    learning_rate: float


OUTCOME: TypeAdapter[Any] = TypeAdapter(Annotated[_Finished | _Diverged, Discriminator("status")])
"""The keys that a result must have, with their types; it may have more."""

LINES: TypeAdapter[Any] = TypeAdapter(list[_Line])
"""The same for the lines of the metrics."""


def _require(schema: TypeAdapter[Any], values: Any) -> None:
    """Check values against a schema.

    Raises:
        ValueError: if a key is missing or has the wrong type.
    """
    try:
        schema.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "status"
        raise ValueError(f"{where}: {first['msg'].lower()}") from error


def _require_plain(value: Any, path: str = "") -> None:
    """Check that no text in a config would be interpolated.

    Raises:
        ValueError: if one would be.
    """
    if isinstance(value, str) and "${" in value:
        raise ValueError(f"{path.removeprefix('.')}={value}: a recorded value may not contain ${{")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_plain(key, path)
            _require_plain(item, f"{path}.{key}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            _require_plain(item, f"{path}[{number}]")


def _contains(config: Any, recipe: Any) -> bool:
    """Return whether a config has all the values of a recipe."""
    if isinstance(recipe, Mapping):
        return isinstance(config, Mapping) and all(
            key in config and _contains(config[key], value) for key, value in recipe.items()
        )
    return bool(config == recipe)


def read_result(folder: Path) -> Values:
    """Return the result in a folder."""
    result = load_json(read_file(folder / RESULT))
    _require(OUTCOME, result)
    return dict(result)


def read_config(folder: Path) -> Values:
    """Return the config in a folder."""
    config = load_yaml(read_file(folder / CONFIG))
    if not isinstance(config, Mapping):
        raise ValueError(f"{CONFIG} holds no mapping")
    _require_plain(config)
    return dict(config)


def read_metrics(folder: Path) -> list[Values]:
    """Return the metrics in a folder, a mapping per epoch."""
    lines = [load_json(line) for line in read_file(folder / METRICS).splitlines()]
    _require(LINES, lines)
    return lines


@dataclass
class Record:
    """What a run has written so far.

    Attributes:
        folder: of the run.
        config: of config.yaml; empty before the run has written it.
        metrics: the lines of metrics.jsonl, a mapping per epoch; empty before the first epoch ends.
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
    """Check that the files of an ended run agree.

    Raises:
        ValueError: if they do not.
    """
    result, config = record.result, record.config
    try:
        own = run_id(result["recipe"], result["numerics_version"])
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{RESULT} does not hold the recipe of a run") from error
    if own != result["run_id"]:
        raise ValueError(f"{RESULT} is of {result['run_id']}, and its recipe that of {own}")
    if not _contains(config, result["recipe"]):
        raise ValueError(f"{CONFIG} is not that of {own}")
    lines = {line["epoch"]: line for line in record.metrics}
    ends = {
        (end["epoch"], kind): end[kind]
        for end in result.get("phases", [])
        for kind in ("weights", "bn")
    }
    if list(lines) != list(range(1, result["epochs"] + 1)) or any(
        lines.get(epoch, {}).get(kind) != test for (epoch, kind), test in ends.items()
    ):
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
        folders: of runs or records, or of a single run; one that does not exist has none.
    """
    for folder in (found for given in folders for found in _ended_in(Path(given))):
        if folder.name.startswith("."):
            continue  # half copied
        try:
            record = read_record(folder)
            if record.result["run_id"] != folder.resolve().name:
                raise ValueError(f"result.json is of another run, {record.result['run_id']}")
        except DAMAGED as error:
            print(damage(folder, error), file=sys.stderr, flush=True)
        else:
            yield record


def _ended_in(folder: Path) -> list[Path]:
    """Return the folders of ended runs in a folder, or itself if it is that of one."""
    if (folder / RESULT).is_file():
        return [folder]
    return [path.parent for path in sorted(folder.glob(f"*/{RESULT}"))]


def damage(folder: Path, error: Exception) -> str:
    """Return what to say of a damaged record."""
    return f"{folder}: a damaged record ({told(error)}); move it away and repeat the run"
