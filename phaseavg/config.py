"""The door: what is wrong with a config is said here, before anything is made or written.

The run's own scalars are fields of `Settings`. The parts (data set, network, optimizer, schedule,
averaging) are built by their constructors, whose signatures are their schema.
"""

import inspect
import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pydantic import (
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

from phaseavg.errors import UserError

Part = dict[str, Any]
"""A target and its arguments, with the types of its constructor."""


STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
"""A number is a number: neither true nor "3", neither nan nor inf."""


def _named(folder: Any) -> Any:
    if not folder:
        raise ValueError("must name a folder")
    return folder


Folder = Annotated[Path, BeforeValidator(_named), Field(strict=False)]


class Scalars(BaseModel):
    """Typed fields, and no others."""

    model_config = ConfigDict(**STRICT, extra="forbid", frozen=True)


def _wandb_mode() -> str:
    """The mode that a W&B user has set for all programs, by either of its names."""
    mode = os.environ.get("WANDB_MODE", "")
    return {"": "offline", "dryrun": "offline", "run": "online"}.get(mode, mode)


OmegaConf.register_new_resolver("wandb_mode", _wandb_mode, replace=True)


class Execution(Scalars):
    """Where and how fast: never part of a run's identity, always part of its record."""

    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    average_device: str = "cpu"
    workers: NonNegativeInt | None = None


class EvaluationCadence(Scalars):
    """Epochs between tests; 0 for never. The ends of phases are always tested."""

    every: NonNegativeInt = 1
    average_every: NonNegativeInt = 0


class Settings(Scalars):
    """One run: the recipe, and how it is carried out. conf/config.yaml says what each field is."""

    dataset: Part
    model: Part
    optimizer: Part
    schedule: Part
    averaging: Part
    batch_size: PositiveInt
    batchnorm_batches: PositiveInt | None = None
    seed: NonNegativeInt
    weight_decay: NonNegativeFloat  # by network; the optimizer refers to it

    tracking: Part = {"_target_": "phaseavg.tracking.Tracking"}
    execution: Execution = Execution()
    evaluation: EvaluationCadence = EvaluationCadence()
    data_dir: Folder = Path("data")
    runs_dir: Folder = Path("runs")
    records_dir: Folder = Path("results/records")
    checkpoint_seconds: NonNegativeFloat = 300
    weights: Literal["none", "final"] = "none"
    force: bool = False
    dry_run: bool = False

    def recipe(self) -> dict[str, Any]:
        """Return what shapes the numbers of the run, and nothing else."""
        parts = ("dataset", "model", "optimizer", "schedule", "averaging")
        return self.model_dump(include={*parts, "batch_size", "batchnorm_batches", "seed"})

    def record(self) -> dict[str, Any]:
        """Return the config as it is recorded: recipe and execution, without folders."""
        own = {"data_dir", "runs_dir", "records_dir", "force", "dry_run", "tracking"}
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


def _signature(target: Any) -> inspect.Signature:
    """Return a target's signature; annotations that only a type checker can read stay strings."""
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:
        return inspect.signature(target)


def _typed(node: Any, path: str) -> Any:
    """Return `node` with its target's arguments checked and converted by the target's signature."""
    if not (isinstance(node, Mapping) and "_target_" in node):
        return node
    module, _, name = str(node["_target_"]).rpartition(".")
    try:
        target = getattr(import_module(module), name)
        parameters = _signature(target).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}._target_={node['_target_']}: {error}") from error
    typed = {"_target_": node["_target_"]}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in node.items():
        if name == "_target_":
            continue
        if name not in parameters and takes_all:
            typed[name] = value
            continue
        if name not in parameters:
            raise UserError(f"{path}.{name}: there is no such key; {_choices(parameters)}")
        annotation = parameters[name].annotation
        if isinstance(value, Mapping) and "_target_" in value:
            typed[name] = _typed(value, f"{path}.{name}")
        elif annotation is inspect.Parameter.empty or isinstance(annotation, str):
            typed[name] = value
        else:
            adapter = TypeAdapter(annotation, config=STRICT)
            try:
                if isinstance(value, list):  # as JSON has it: there, a tuple is one, too
                    found = adapter.validate_json(json.dumps(value))
                else:
                    found = adapter.validate_python(value)
                typed[name] = adapter.dump_python(found)
            except ValidationError as error:
                raise UserError(_refused(f"{path}.{name}", value, error.errors()[0])) from error
    return typed


def check(config: DictConfig) -> Settings:
    """Return the settings of a composed config.

    Raises:
        UserError: if a key is unknown or a value has the wrong type or is not among the choices.
    """
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        *parents, _ = first["loc"]
        field = ".".join(str(key) for key in first["loc"])
        if first["type"] != "extra_forbidden":
            raise UserError(_refused(field, first["input"], first)) from error
        schema: Any = Settings
        for key in parents:
            schema = schema.model_fields[key].annotation
        choices = _choices(schema.model_fields)
        raise UserError(f"{field}: there is no such key; {choices}") from error
    parts = {name: value for name, value in settings if isinstance(value, dict)}
    for name, part in parts.items():
        if "_target_" not in part:
            raise UserError(f"{name}._target_: is missing; choose an option of {name}")
    typed = {name: _typed(part, name) for name, part in parts.items()}
    return settings.model_copy(update=typed)


def build(name: str, part: Part, *, offered: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """Build one part of a run from its config and what the program gives it.

    Args:
        name: of the config group.
        part: target and arguments.
        offered: what its constructor gets of it is what its signature names.
        given: what its constructor gets in any case.

    Raises:
        UserError: if its constructor refuses a value, or the config has one that the program gives.
    """
    if clash := part.keys() & {*given, *(offered or {})}:
        raise UserError(f"{name}.{min(clash)}: follows from the rest of the config; leave it out")
    try:
        make = instantiate(part, _partial_=True, _convert_="all")
        names = inspect.signature(make).parameters
        given |= {key: value for key, value in (offered or {}).items() if key in names}
        inspect.signature(make).bind(**given)
    except TypeError as error:
        raise UserError(f"{name}: {error}") from error
    except InstantiationException as error:  # of a nested part
        if not isinstance(error.__cause__, ValueError):
            raise
        where = str(error).rpartition("full_key: ")[2]
        raise UserError(f"{name}.{where}: {error.__cause__}") from error
    try:
        return make(**given)
    except ValueError as error:
        arguments = ", ".join(f"{key}={value}" for key, value in part.items() if key[0] != "_")
        message = str(error)
        shown = "" if "=" in message else f" (given: {arguments})"
        raise UserError(f"{name}: {message}{shown}") from error
