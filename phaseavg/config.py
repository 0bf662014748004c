"""The door: what is wrong with a config is said here, before anything is made or written.

The run's own scalars are fields of `Settings`. The parts (data set, network, optimizer, schedule,
averaging) are built by their constructors, whose signatures are their schema.
"""

import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from phaseavg.errors import PartFailed, UserError
from phaseavg.runs.identity import RECIPE, run_id
from phaseavg.targets import KINDS, failed, is_part, located, require_allowed, require_kind

Part = dict[str, Any]
"""A target and its arguments, with the types of its constructor."""


STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""A number is a number: neither true nor "3", neither nan nor inf."""


def _named(folder: Any) -> Any:
    if not folder:
        raise ValueError("must name a folder")
    return folder


def _from_launch(folder: Path) -> Path:
    """Return a folder as it is called from where a job runs: hydra.job.chdir may have moved it."""
    if HydraConfig.initialized() and HydraConfig.get().job.chdir:
        return Path(HydraConfig.get().runtime.cwd, folder)
    return folder


Folder = Annotated[Path, BeforeValidator(_named), AfterValidator(_from_launch), Field(strict=False)]
"""Named relative to the folder in which the command was typed."""


class Scalars(BaseModel):
    """Typed fields, and no others."""

    model_config = ConfigDict(**STRICT, extra="forbid", frozen=True)


def _wandb_mode() -> str:
    """The mode that a W&B user has set for all programs, by either of its names."""
    mode = os.environ.get("WANDB_MODE", "")
    return {"": "offline", "dryrun": "offline", "run": "online"}.get(mode, mode)


OmegaConf.register_new_resolver("wandb_mode", _wandb_mode, replace=True)


MOST_THREADS = 1024
"""Of a process, and processes of a run: more than any machine has cores."""

LARGEST = 1e30
"""Of all numbers: float32, in which torch computes, ends at 3.4e38."""


def _refuse_large(value: Any, path: str) -> None:
    """Refuse numbers that torch cannot compute with, wherever they are in a config.

    Raises:
        UserError: if there is one.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_large(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _refuse_large(item, f"{path}[{number}]")
    elif isinstance(value, float) and LARGEST < abs(value) < inf:
        raise UserError(f"{path}={value}: must be between -{LARGEST:g} and {LARGEST:g}")
    elif isinstance(value, int) and value.bit_length() > 63:
        raise UserError(f"{path}={value}: must be an integer of 64 bits")


class Execution(Scalars):
    """Where and how fast: never part of a run's identity, always part of its record."""

    device: str = "auto"
    deterministic: bool = True
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"
    channels_last: bool = False
    graph: Literal[True, False, "auto"] = False
    compile: Literal[True, False, "max-autotune"] = False
    flipped_copy: bool = True
    average_device: str = "cpu"
    snapshots: Literal["files", "memory"] = "files"
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    workers: Annotated[int, Field(ge=0, le=MOST_THREADS)] | None = None


def _tables(carry: Any) -> Any:
    if isinstance(carry, list) and all(isinstance(name, str | int) for name in carry):
        return [str(name) for name in carry]
    if carry not in ("all", "asked"):
        raise ValueError("is neither all nor asked nor a list of tables such as [1a,2]")
    return carry


class Share(Scalars):
    """Whether and where runs share what they have in common, and what is kept for others."""

    enabled: bool = True
    carry: Annotated[Any, BeforeValidator(_tables)] = "all"
    dir: Folder = Path("runs/shared")
    trunk: str | None = None


def _switch(share: Any) -> Any:
    if share is False:
        return {"enabled": False}
    if not isinstance(share, Mapping | Share):
        raise ValueError("is not false, which is all that it can be set to; leave it out to share")
    return share


Snapshots = Literal["none", "last_layer", "epochs", "steps"]
"""What is kept on the way; each has all that those before it have."""


class EvaluationCadence(Scalars):
    """Epochs between tests; 0 for never. The ends of phases are always tested."""

    every: NonNegativeInt = 0
    average_every: NonNegativeInt = 0
    batchnorm_every: NonNegativeInt = 0


def _distinct(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("must be small letters, digits and _, beginning with a letter")
    if name in ("average", "bn") or "without_bn" in name:
        raise ValueError("is a name that records use otherwise; choose another one")
    return name


WatchName = Annotated[str, AfterValidator(_distinct)]
"""Of an average that is watched: its errors are recorded as `<name>_test_error`."""


CellLabel = Annotated[str, Field(pattern=r"^\S+( \S+){3}$")]
"""Of a cell of a table: its table, data set, network and column, with blanks between them."""


class Settings(Scalars):
    """One run: the recipe, and how it is carried out. conf/config.yaml says what each field is."""

    dataset: Part
    model: Part
    optimizer: Part
    schedule: Part
    averaging: Part
    batch_size: PositiveInt
    batchnorm_batches: PositiveInt | None = None
    optimizer_state: Literal["keep", "reset"] = "keep"
    seed: NonNegativeInt
    weight_decay: NonNegativeFloat  # by network; the optimizer refers to it

    watch: dict[WatchName, Part] = {}
    tracking: Part = {"_target_": "phaseavg.tracking.Tracking"}
    execution: Execution = Execution()
    evaluation: EvaluationCadence = EvaluationCadence()
    data_dir: Folder = Path("data")
    runs_dir: Folder = Path("runs")
    records_dir: Folder = Path("results/records")
    share: Annotated[Share, BeforeValidator(_switch)] = Share()
    cells: list[CellLabel] = []
    checkpoint_seconds: NonNegativeFloat = 300
    stop_at: NonNegativeFloat | None = None
    weights: Literal["none", "final"] = "none"
    snapshots: Snapshots = "none"
    force: bool = False
    dry_run: bool = False

    @property
    def run_id(self) -> str:
        """The run's name, which ends in a hash of its recipe."""
        return run_id(self.recipe())

    @property
    def run_folder(self) -> Path:
        """Where the run leaves what it leaves."""
        return self.runs_dir / self.run_id

    @property
    def places(self) -> tuple[Path, Path]:
        """Where the run is looked for: among the runs, and among the records that were kept."""
        return self.run_folder, self.records_dir / self.run_id

    def recipe(self) -> dict[str, Any]:
        """Return what shapes the numbers of the run, and nothing else."""
        return self.model_dump(include=set(RECIPE))

    def record(self) -> dict[str, Any]:
        """Return the config as it is recorded: recipe and execution, without folders."""
        folders = {"data_dir", "runs_dir", "records_dir"}
        own = {*folders, "force", "dry_run", "tracking", "share", "cells", "stop_at"}
        return self.model_dump(exclude=own)


def _choices(names: Mapping[str, Any] | list[str]) -> str:
    return f"choices: {', '.join(names) or 'none'}"


def _refused(field: str, value: Any, error: Mapping[str, Any]) -> str:
    """Return what pydantic has against a value, in one line."""
    if error["type"] == "value_error":  # raised here
        return f"{field}={value!r} {error['ctx']['error']}"
    if error["type"] == "literal_error":
        return f"{field}={value!r}; choices: {error['ctx']['expected']}"
    return f"{field}={value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def signature(target: Any) -> inspect.Signature:
    """Return a target's signature; annotations that only a type checker can read stay strings."""
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:
        return inspect.signature(target)


def _with_parts(value: Any, path: str, function: Callable[[Part, str], Any]) -> Any:
    """Return `value` with `function` applied to each part in it, in lists and mappings too."""
    if is_part(value):
        return function(value, path)
    if isinstance(value, Mapping):
        return {key: _with_parts(item, f"{path}.{key}", function) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_parts(v, f"{path}[{n}]", function) for n, v in enumerate(value)]
    return value


def _has_parts(value: Any) -> bool:
    if isinstance(value, Mapping):
        return is_part(value) or any(map(_has_parts, value.values()))
    return isinstance(value, list) and any(map(_has_parts, value))


def _typed(part: Part, path: str, wanted: Any = inspect.Parameter.empty) -> Part:
    """Return a part with its target's arguments checked and converted by the target's signature.

    Nothing is called, and the target must be known to give what its place takes.

    Args:
        part: target and arguments.
        path: its place in the config.
        wanted: the annotation of its place.
    """
    where = f"{path}._target_={part['_target_']}"
    target = located(str(part["_target_"]), path)
    try:
        known = signature(target)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
    require_kind(target, where, wanted, known.return_annotation)
    parameters = known.parameters
    typed = {"_target_": part["_target_"]}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in part.items():
        if name == "_target_":
            continue
        if name not in parameters and not takes_all:
            raise UserError(f"{path}.{name}: there is no such key; {_choices(parameters)}")
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        if is_part(value):
            typed[name] = _typed(value, f"{path}.{name}", annotation)
        elif _has_parts(value):  # what they are is seen once they are built
            typed[name] = _with_parts(value, f"{path}.{name}", _typed)
        elif annotation is inspect.Parameter.empty or isinstance(annotation, str):
            typed[name] = value
        else:
            adapter = TypeAdapter(annotation, config=STRICT)
            try:
                if isinstance(value, list):  # as JSON has it: there, a tuple is one, too
                    found = adapter.validate_json(json.dumps(value))
                else:
                    found = adapter.validate_python(value)
                converted = adapter.dump_python(found)
                # Of an iterable only an iterator would be left, which is no value.
                typed[name] = value if isinstance(converted, Iterator) else converted
            except ValidationError as error:
                raise UserError(_refused(f"{path}.{name}", value, error.errors()[0])) from error
    return typed


SWEEPS = {
    "table": "add -m to run the cells of a table",
    "column": "add -m and table=…",
    "plan": "add -m, or take dry_run=true to see what a single run would do",
    "budget": "add -m",
}
"""Keys of the config that a sweep takes for itself, with what to do where there is none."""


def check(config: DictConfig) -> Settings:
    """Return the settings of a composed config.

    Raises:
        UserError: if a key is unknown or a value has the wrong type or is not among the choices.
    """
    return _checked(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def check_record(config: Mapping[str, Any], extra: Iterable[str] = ()) -> Settings:
    """Return the settings of a record, which may be a stranger's.

    Nothing in it is interpolated; what it names is imported only if it is allowed.

    Args:
        config: from `phaseavg.runs.record.checked_config`.
        extra: modules or targets that it may name beside the project's own.

    Raises:
        UserError: if it names others, or is no config of today's.
    """
    require_allowed(config, extra)
    return _checked(dict(config))


def _checked(values: dict[str, Any]) -> Settings:
    _refuse_large(values, "")
    for key, hint in SWEEPS.items():
        given = values.pop(key, None)
        if key == "table":  # a preset may change a table's rows
            given = bool(given and "columns" in given)
        if given is not None and given is not False:
            raise UserError(f"{key}: is of a sweep; {hint}")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        *parents, _ = first["loc"]
        field = ".".join(str(key) for key in first["loc"] if key != "[key]")
        if first["type"] == "missing":
            raise UserError(f"{field}: is missing") from error
        if first["type"] != "extra_forbidden":
            raise UserError(_refused(field, first["input"], first)) from error
        schema: Any = Settings
        for key in parents:
            schema = schema.model_fields[key].annotation
        choices = _choices(schema.model_fields)
        raise UserError(f"{field}: there is no such key; {choices}") from error
    parts = {name: value for name, value in settings if isinstance(value, dict)}
    watched = {f"watch.{name}": part for name, part in parts.pop("watch").items()}
    typed = {}
    for name, part in (parts | watched).items():
        if not is_part(part):
            raise UserError(f"{name}._target_: is missing; choose an option of {name}")
        typed[name] = _typed(part, name, located(KINDS[name.partition(".")[0]]))
    watch = {name.removeprefix("watch."): typed.pop(name) for name in watched}
    return settings.model_copy(update={**typed, "watch": watch})


def build(
    name: str,
    part: Part,
    kind: type | None = None,
    *,
    offered: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """Build one part of a run, and first those in it, from its config and what the program gives.

    Args:
        name: of the config group.
        part: target and arguments.
        kind: what it has to be an instance of; by default anything.
        offered: what its constructor, and those of the parts in it, get of it is what their
            signatures name.
        given: what its constructor gets in any case.

    Raises:
        UserError: if a constructor refuses a value, the config has one that the program gives, or
            something else than is needed comes out.
        PartFailed: if a constructor fails in another way.
    """
    target = located(part["_target_"], name)
    parameters = signature(target).parameters
    if clash := part.keys() & {*given, *(offered or {})}:
        raise UserError(f"{name}.{min(clash)}: follows from the rest of the config; leave it out")
    given |= {key: value for key, value in (offered or {}).items() if key in parameters}

    def built(inner: Part, path: str) -> Any:
        return build(path, inner, offered=offered)

    arguments = dict(given)
    for key, value in part.items():
        if key == "_target_":
            continue
        arguments[key] = _with_parts(value, f"{name}.{key}", built)
        if is_part(value) and key in parameters:
            _require(f"{name}.{key}", value, arguments[key], parameters[key].annotation)
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from error
    try:
        made = target(**arguments)
    except ValueError as error:
        plain = {k: v for k, v in part.items() if k != "_target_" and not _has_parts(v)}
        shown = ", ".join(f"{key}={value}" for key, value in plain.items())
        message = str(error)
        where = "" if "=" in message else f" (given: {shown})"
        raise UserError(f"{name}: {message}{where}") from error
    except (OSError, PartFailed):
        raise
    except Exception as error:
        raise failed(f"{name}={part['_target_']}", error) from error
    if kind is not None:
        _require(name, part, made, kind)
    return made


def _require(name: str, part: Part, made: Any, annotation: Any) -> None:
    """Check that what a part has become is what its place takes.

    Raises:
        UserError: if not.
    """
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return
    try:
        TypeAdapter(annotation, config=STRICT).validate_python(made)
    except ValidationError as error:
        wanted = getattr(annotation, "__name__", annotation)
        raise UserError(
            f"{name}._target_={part['_target_']}: gives a {type(made).__name__}, not {wanted}"
        ) from error
