"""Validate a composed config before anything is built or written.

Scalars are fields of `Settings`. The schema of a part (data set, network, optimizer, schedule,
averaging) is its constructor's signature (see `phaseavg.targets`).
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
    convert_part,
    drop_defaults,
    import_target,
    is_part,
    require_allowed,
    unknown_message,
    validation_message,
)


def _require_name(folder: Any) -> Any:
    if not folder:
        raise ValueError("must name a folder")
    return folder


Folder = Annotated[Path, BeforeValidator(_require_name), Field(strict=False)]


class Scalars(BaseModel):
    """Base class of settings: strictly typed fields; unknown keys are rejected."""

    model_config = ConfigDict(**STRICT, extra="forbid", frozen=True)


class Execution(Scalars):
    """Device, precision and speed options; saved in the record, but not part of the run id."""

    device: str = "auto"
    deterministic: bool = True
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"
    channels_last: bool = False
    graph: Literal[True, False, "auto"] = False
    compile: Literal[True, False, "max-autotune"] = False
    sync_batchnorm: bool = False
    threads: PositiveInt | None = None
    workers: NonNegativeInt | None = None


class Share(Scalars):
    """Prefixes shared between runs. A sweep sets `prefix` and `guests` in the job of a prefix."""

    enabled: bool = True
    dir: Folder = Path("runs/shared")
    prefix: PositiveInt | None = None
    # Averages for the runs that start from the prefix, each with the `epochs` of its run's phases.
    guests: dict[str, Part] = {}

    @field_validator("guests")
    @classmethod
    def _convert(cls, guests: dict[str, Part]) -> dict[str, Part]:
        return {name: _convert_part(part, "averaging") for name, part in guests.items()}


def _parse_share(share: Any) -> Any:
    if share is False:
        return {"enabled": False}
    if not isinstance(share, Mapping | Share):
        raise ValueError("must be false; leave it out to share prefixes")
    return share


SavedTrajectory = Literal["none", "last_layer", "epochs", "steps"]
"""Weights saved during training; each choice includes the weights of the previous choice."""


class EvaluationCadence(Scalars):
    """Epochs between evaluations; 0: none. The end of each phase is always evaluated."""

    every: NonNegativeInt = 0
    average_every: NonNegativeInt = 0
    batchnorm_every: NonNegativeInt = 0


NO_TRACKING: Part = {"_target_": "phaseavg.tracking.Tracking"}

ObserverName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Settings(Scalars):
    """The recipe and execution options of one run; conf/config.yaml documents each field."""

    dataset: Part
    model: Part
    optimizer: Part
    schedule: Part
    averaging: Part
    batch_size: PositiveInt = 128
    batchnorm_batches: PositiveInt | None = None
    optimizer_state: Literal["keep", "reset"] = "keep"
    seed: NonNegativeInt
    weight_decay: NonNegativeFloat  # set per network; the optimizer's config refers to it

    observers: dict[ObserverName, Part] = {}
    tracking: Part = NO_TRACKING
    execution: Execution = Execution()
    evaluation: EvaluationCadence = EvaluationCadence()
    data_dir: Folder = Path("data")
    runs_dir: Folder = Path("runs")
    records_dir: Folder = Path("results/full/records")
    share: Annotated[Share, BeforeValidator(_parse_share)] = Share()
    checkpoint_seconds: NonNegativeFloat = 300
    deadline: NonNegativeFloat | None = None
    save_weights: bool = False
    save_trajectory: SavedTrajectory = "none"
    rerun: bool = False
    dry_run: bool = False

    @field_validator("dataset", "model", "optimizer", "schedule", "averaging", "tracking")
    @classmethod
    def _convert(cls, part: Part, info: ValidationInfo) -> Part:
        return _convert_part(part, str(info.field_name))

    @field_validator("observers")
    @classmethod
    def _convert_observers(cls, observers: dict[str, Part]) -> dict[str, Part]:
        if "average" in observers:
            raise UserError("observers.average: reserved for the run's average; choose a new name")
        return {name: _convert_part(part, f"observers.{name}") for name, part in observers.items()}

    @property
    def run_id(self) -> str:
        """The run id: the names of the parts, the seed and a hash of the recipe."""
        return run_id(self.recipe())

    @property
    def run_folder(self) -> Path:
        """The run folder."""
        return self.runs_dir / self.run_id

    def recipe(self) -> dict[str, Any]:
        """Return the settings that affect the run's numbers and differ from their defaults."""
        values = self.model_dump(include=set(RECIPE))
        fields = type(self).model_fields
        return {
            name: drop_defaults(value, name) if is_part(value) else value
            for name, value in values.items()
            if name == "seed" or value != fields[name].default
        }

    def record(self) -> dict[str, Any]:
        """Return the recorded part of the config: recipe and execution, without folders."""
        return self.model_dump(exclude=NOT_RECORDED)


NOT_RECORDED = {
    *("data_dir", "runs_dir", "records_dir", "rerun", "dry_run", "tracking", "share", "deadline"),
}
"""Keys of the config that are not saved in a run's record."""


def recorded_overrides() -> list[str]:
    """Return --config-dir, --config-name and the recorded overrides of the current Hydra job."""
    hydra, here = HydraConfig.get(), Path.cwd()
    sources = [Path(s.path) for s in hydra.runtime.config_sources if s.provider == "command-line"]
    folders = [path.relative_to(here) if path.is_relative_to(here) else path for path in sources]
    name = hydra.job.config_name
    return [
        *(f"--config-dir={folder}" for folder in folders),
        *([f"--config-name={name}"] if name != "config" else []),
        *(
            override
            for override in hydra.overrides.task
            if re.split(r"[.=@]", override.lstrip("+~"))[0] not in NOT_RECORDED
        ),
    ]


RETIRED = ("flipped_copy", "average_device")
"""Execution options in older records."""

SWEEPS = ("table", "column", "plan", "budget")
"""Keys of the config that only a sweep uses."""


def check(config: DictConfig) -> Settings:
    """Validate a composed config and return its settings.

    Raises:
        UserError: if a key is unknown, or a value is missing or not valid.
    """
    if missing := OmegaConf.missing_keys(config):
        raise UserError(f"{min(missing)}: is missing; add {min(missing)}=…")
    return _validate(OmegaConf.to_container(config, resolve=True))


def check_record(config: Mapping[str, Any], extra: Iterable[str] = ()) -> Settings:
    """Validate an untrusted record and return its settings; imports only allowed targets.

    Args:
        config: the mapping that `phaseavg.runs.record.read_config` returns.
        extra: further modules or targets that the record may name.

    Raises:
        UserError: if another target is named, or the config has an interpolation or is not valid.
    """
    require_allowed(config, extra)
    if "${" in json.dumps(config, default=str):
        raise UserError("${…}: a record must not have interpolations; write out each value")
    values = dict(config)
    if isinstance(execution := values.get("execution"), Mapping):
        values["execution"] = {k: v for k, v in execution.items() if k not in RETIRED}
    return _validate(values)


def _validate(values: dict[str, Any]) -> Settings:
    for key in SWEEPS:
        value = values.pop(key, None)
        if isinstance(value, Mapping):  # with table=none, a scale may still set the tables' seeds
            value = value.get("columns")
        if value is not None and value is not False:
            raise UserError(f"{key}: only a sweep has this option; add -m")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):  # its message names the part's field
            raise cause from error
        field = ".".join(str(key) for key in first["loc"] if key != "[key]")
        if first["type"] == "missing":
            raise UserError(f"{field}: is missing; add {field}=…") from error
        if first["type"] != "extra_forbidden":
            raise UserError(validation_message(field, first["input"], first)) from error
        schema: Any = Settings
        for key in first["loc"][:-1]:
            schema = schema.model_fields[key].annotation
        raise UserError(unknown_message(field, schema.model_fields)) from error


def _convert_part(part: Part, name: str) -> Part:
    group = name.partition(".")[0]
    if not is_part(part):
        raise UserError(f"{name}._target_: is missing; choose an option of {group}, or set it")
    return convert_part(part, name, import_target(KINDS[group]))
