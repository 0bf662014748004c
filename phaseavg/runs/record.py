"""Read the files of a record: plain data, checked, whoever wrote them.

Nothing that a record names is imported, called or interpolated here. All readers raise ValueError
for a file that is damaged or of another run, and OSError for one that cannot be read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError

from phaseavg.runs.files import load_json, load_yaml, read_file, unpacked
from phaseavg.runs.identity import RECIPE, run_id

Values = dict[str, Any]


class _Keys(BaseModel):
    model_config = ConfigDict(strict=True)


class _Made(_Keys):
    execution: Values
    versions: Values
    git: Values


class _PhaseEnd(_Keys):
    epoch: int
    replaced: bool
    test_error: float
    bn_test_error: float


class _Inherited(_Keys):
    epochs: int
    seconds: float
    segments: list[Values]


class _Outcome(_Keys):
    run_id: str
    numerics_version: int
    epochs: int
    seconds: float
    train_seconds: float
    averaging_seconds: float
    provenance: Annotated[list[_Made], Field(min_length=1)]
    former_run_ids: list[str] = []  # this and the rest are not in the oldest records
    watch: Values = {}
    with_bn_pass: Values = {}
    inherited: _Inherited | None = None


class _Finished(_Outcome):
    status: Literal["finished"]
    test_error: float
    best_test_error: float
    best_epoch: int
    images_per_second: float
    phases: Annotated[list[_PhaseEnd], Field(min_length=1)]


class _Diverged(_Outcome):
    status: Literal["diverged"]
    reason: str
    step: int
    epoch: int
    learning_rate: float


RESULT: TypeAdapter[Any] = TypeAdapter(Annotated[_Finished | _Diverged, Discriminator("status")])
"""The keys that the result of a run has to have, with their types; it may have more."""


def checked_result(values: Any) -> Values:
    """Return a result that has all the keys of `RESULT`.

    Raises:
        ValueError: if it has not.
    """
    try:
        RESULT.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "status"
        raise ValueError(f"{field}: {first['msg'].lower()}") from error
    return dict(values)


def checked_config(content: bytes | str) -> Values:
    """Return the config in the text of a config.yaml.

    Raises:
        ValueError: if it is no mapping, or holds an interpolation, which a resolved one never does.
    """
    config = load_yaml(content)
    if not isinstance(config, Mapping):
        raise ValueError("config.yaml holds no mapping")
    _require_plain(config, "")
    return dict(config)


def _require_plain(value: Any, path: str) -> None:
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


def checked_lines(content: bytes) -> list[Values]:
    """Return the mappings in lines of JSON.

    Raises:
        ValueError: if a line is none.
    """
    lines = [load_json(line) for line in content.splitlines()]
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError("a line of the metrics is no mapping")
    return lines


def require_one_run(
    result: Mapping[str, Any], config: Mapping[str, Any], lines: Sequence[Values] | None = None
) -> None:
    """Check that the files of a record are of one run.

    Args:
        result: from `checked_result`.
        config: from `checked_config`.
        lines: of the metrics, if they are at hand.

    Raises:
        ValueError: if they are not.
    """
    recipe = {key: config[key] for key in RECIPE if key in config}  # older ones have fewer
    try:
        own = run_id(recipe, result["numerics_version"])
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("config.yaml is not the config of a run") from error
    if own not in (result["run_id"], *result.get("former_run_ids", [])):
        raise ValueError(f"config.yaml is that of {own}, result.json that of {result['run_id']}")
    if lines is None:
        return
    ends = {end["epoch"]: end for end in result.get("phases", [])}
    found = {line.get("epoch"): line for line in lines}
    if len(lines) != result["epochs"] or any(
        end[key] != found.get(epoch, {}).get(key)
        for epoch, end in ends.items()
        for key in ("test_error", "bn_test_error")
    ):
        raise ValueError("metrics and result disagree")


def read_result(folder: Path) -> Values:
    """Return the result in a folder, with all the keys that it has to have."""
    return checked_result(load_json(read_file(folder / "result.json")))


def read_config(folder: Path) -> Values:
    """Return the config in a folder."""
    return checked_config(read_file(folder / "config.yaml"))


def read_lines(folder: Path) -> list[Values]:
    """Return the metrics in a folder, a mapping per epoch; none if it has no such file."""
    try:
        return checked_lines(read_metrics(folder))
    except FileNotFoundError:
        return []


def read_metrics(folder: Path) -> bytes:
    """Return the text of the metrics in a folder."""
    path = metrics_file(folder)
    content = read_file(path)
    return unpacked(content) if path.suffix == ".xz" else content


def metrics_file(folder: Path) -> Path:
    """Return where a run or a record has its metrics: of records that are kept, compressed."""
    compressed = folder / "metrics.jsonl.xz"
    return compressed if compressed.exists() else folder / "metrics.jsonl"


def has_ended(folder: Path) -> bool:
    """Return whether a run's folder has a result, intact or not."""
    return (folder / "result.json").is_file()


def ended_runs(place: Path) -> list[Path]:
    """Return the folders in `place` that have a result, by name; hidden ones are half-written."""
    found = sorted(path.parent for path in place.glob("*/result.json"))
    return [folder for folder in found if not folder.name.startswith(".")]
