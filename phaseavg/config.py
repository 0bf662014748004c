"""Validate a composed config, before anything is built or written.

Scalars are fields of `Settings`. The schema of a part (data set, network, optimizer, schedule,
averaging) is its constructor's signature: see `phaseavg.targets`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from phaseavg.errors import UserError
from phaseavg.identity import RECIPE, run_id
from phaseavg.targets import (
    KINDS,
    STRICT,
    Part,
    is_part,
    located,
    refused,
    require_allowed,
    typed_part,
    unknown,
    without_defaults,
)


def _named(folder: Any) -> Any:
    if not folder:
        raise ValueError("must name a folder")
    return folder


Folder = Annotated[Path, BeforeValidator(_named), Field(strict=False)]


class Scalars(BaseModel):
    """Typed fields, and no others."""

    model_config = ConfigDict(**STRICT, extra="forbid", frozen=True)


class Execution(Scalars):
    """Where and how fast a run is computed: not part of its run id, but of its record."""

    device: str = "auto"
    deterministic: bool = True
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"
    channels_last: bool = False
    graph: Literal[True, False, "auto"] = False
    compile: Literal[True, False, "max-autotune"] = False
    flipped_copy: bool = True
    average_device: str = "cpu"
    threads: PositiveInt | None = None
    workers: NonNegativeInt | None = None


class Guest(Scalars):
    """An average of other runs that start from one of this run's prefixes."""

    averaging: Part
    epochs: list[PositiveInt]  # T_p of each phase of these runs
    until: PositiveInt  # epochs of the last prefix that needs it

    @field_validator("averaging")
    @classmethod
    def _typed(cls, part: Part) -> Part:
        return _typed_part(part, "averaging")


class Share(Scalars):
    """Prefixes that runs have in common. A sweep sets the epochs and averages kept for others."""

    enabled: bool = True
    dir: Folder = Path("runs/shared")
    keep: list[PositiveInt] = []
    guests: dict[str, Guest] = {}


def _switch(share: Any) -> Any:
    if share is False:
        return {"enabled": False}
    if not isinstance(share, Mapping | Share):
        raise ValueError("must be false; leave it out to share")
    return share


SavedTrajectory = Literal["none", "last_layer", "epochs", "steps"]
"""Weights that a run saves during training; each choice includes those before it."""


class EvaluationCadence(Scalars):
    """Epochs between tests; 0: never. The end of each phase is always tested."""

    every: NonNegativeInt = 0
    average_every: NonNegativeInt = 0
    batchnorm_every: NonNegativeInt = 0


ObserverName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Settings(Scalars):
    """One run: the recipe, and how it is carried out. conf/config.yaml says what each field is."""

    dataset: Part
    model: Part
    optimizer: Part
    schedule: Part
    averaging: Part
    batch_size: PositiveInt = 128
    batchnorm_batches: PositiveInt | None = None
    optimizer_state: Literal["keep", "reset"] = "keep"
    seed: NonNegativeInt
    weight_decay: NonNegativeFloat  # by network; the optimizer refers to it

    observers: dict[ObserverName, Part] = {}
    tracking: Part = {"_target_": "phaseavg.tracking.Tracking"}
    execution: Execution = Execution()
    evaluation: EvaluationCadence = EvaluationCadence()
    data_dir: Folder = Path("data")
    runs_dir: Folder = Path("runs")
    records_dir: Folder = Path("results/full/records")
    share: Annotated[Share, BeforeValidator(_switch)] = Share()
    checkpoint_seconds: NonNegativeFloat = 300
    deadline: NonNegativeFloat | None = None
    save_weights: bool = False
    save_trajectory: SavedTrajectory = "none"
    rerun: bool = False
    dry_run: bool = False

    @field_validator("dataset", "model", "optimizer", "schedule", "averaging", "tracking")
    @classmethod
    def _typed(cls, part: Part, info: ValidationInfo) -> Part:
        return _typed_part(part, str(info.field_name))

    @field_validator("observers")
    @classmethod
    def _typed_observers(cls, observers: dict[str, Part]) -> dict[str, Part]:
        if "average" in observers:
            raise UserError("observers.average: is the name of the run's own average")
        return {name: _typed_part(part, f"observers.{name}") for name, part in observers.items()}

    @property
    def run_id(self) -> str:
        """The run's name, which ends in a hash of its recipe."""
        return run_id(self.recipe())

    @property
    def run_folder(self) -> Path:
        """The folder that the run writes to."""
        return self.runs_dir / self.run_id

    @property
    def places(self) -> tuple[Path, Path]:
        """Folders in which the finished run may be: among the runs, and among the records."""
        return self.run_folder, self.records_dir / self.run_id

    def recipe(self) -> dict[str, Any]:
        """Return the values that shape the run's numbers and differ from their defaults."""
        values = self.model_dump(include=set(RECIPE))
        fields = type(self).model_fields
        return {
            name: without_defaults(value, name) if is_part(value) else value
            for name, value in values.items()
            if name == "seed" or value != fields[name].default
        }

    def record(self) -> dict[str, Any]:
        """Return the config as it is recorded: recipe and execution, without folders."""
        return self.model_dump(exclude=NOT_RECORDED)


NOT_RECORDED = {
    *("data_dir", "runs_dir", "records_dir", "rerun", "dry_run", "tracking", "share", "deadline"),
}
"""Keys of the config that say where and when a run is trained."""


def typed_overrides() -> list[str]:
    """Return the overrides of the present Hydra job, without those that are not recorded."""
    overrides = HydraConfig.get().overrides.task
    return [o for o in overrides if re.split(r"[.=@]", o.lstrip("+~"))[0] not in NOT_RECORDED]


SWEEPS = ("table", "column", "plan", "budget")
"""Keys of a sweep's config."""


def check(config: DictConfig) -> Settings:
    """Return the settings of a composed config.

    Raises:
        UserError: if a key is unknown, or a value is missing, of a wrong type or no valid choice.
    """
    if missing := OmegaConf.missing_keys(config):
        raise UserError(f"{min(missing)}: is missing; add {min(missing)}=…")
    return _checked(OmegaConf.to_container(config, resolve=True))


def check_record(config: Mapping[str, Any], extra: Iterable[str] = ()) -> Settings:
    """Return the settings of a record from anybody: only allowed targets are imported.

    Args:
        config: from `phaseavg.runs.record.read_config`.
        extra: modules or targets that it may name beside the project's own.

    Raises:
        UserError: if it names others, has an interpolation, or is not a valid config.
    """
    require_allowed(config, extra)
    if "${" in json.dumps(config, default=str):
        raise UserError("a record must not have interpolations: ${…}")
    return _checked(dict(config))


def _checked(values: dict[str, Any]) -> Settings:
    sweep = {key: values.pop(key, None) for key in SWEEPS}
    if "columns" not in (sweep["table"] or {}):  # a preset may change the rows of table=none
        del sweep["table"]
    for key, value in sweep.items():
        if value is not None and value is not False:
            raise UserError(f"{key}: belongs to a sweep; add -m")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):  # of a part, with its field
            raise cause from error
        field = ".".join(str(key) for key in first["loc"] if key != "[key]")
        if first["type"] == "missing":
            raise UserError(f"{field}: is missing") from error
        if first["type"] != "extra_forbidden":
            raise UserError(refused(field, first["input"], first)) from error
        schema: Any = Settings
        for key in first["loc"][:-1]:
            schema = schema.model_fields[key].annotation
        raise UserError(unknown(field, schema.model_fields)) from error


def _typed_part(part: Part, name: str) -> Part:
    group = name.partition(".")[0]
    if not is_part(part):
        raise UserError(f"{name}._target_: is missing; choose an option of {group}")
    return typed_part(part, name, located(KINDS[group]))
