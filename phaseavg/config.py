"""The door: what is wrong with a config is said here, before anything is made or written.

The run's own scalars are fields of `Settings`. The parts (data set, network, optimizer, schedule,
averaging) are built by their constructors, whose signatures are their schema.
"""

import os
import re
from collections.abc import Iterable, Mapping
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
    ValidationError,
)

from phaseavg.errors import UserError
from phaseavg.runs.identity import RECIPE, run_id
from phaseavg.targets import (
    KINDS,
    STRICT,
    Part,
    choices,
    is_part,
    located,
    refused,
    require_allowed,
    typed_part,
)


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
        UserError: if a key is unknown or a value is missing, has the wrong type or is not among the
            choices.
    """
    if missing := OmegaConf.missing_keys(config):
        raise UserError(f"{min(missing)}: is missing; add {min(missing)}=…")
    return _checked(OmegaConf.to_container(config, resolve=True))


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
            raise UserError(refused(field, first["input"], first)) from error
        schema: Any = Settings
        for key in parents:
            schema = schema.model_fields[key].annotation
        known = choices(schema.model_fields)
        raise UserError(f"{field}: there is no such key; {known}") from error
    parts = {name: value for name, value in settings if isinstance(value, dict)}
    watched = {f"watch.{name}": part for name, part in parts.pop("watch").items()}
    typed = {}
    for name, part in (parts | watched).items():
        if not is_part(part):
            raise UserError(f"{name}._target_: is missing; choose an option of {name}")
        typed[name] = typed_part(part, name, located(KINDS[name.partition(".")[0]]))
    watch = {name.removeprefix("watch."): typed.pop(name) for name in watched}
    return settings.model_copy(update={**typed, "watch": watch})
