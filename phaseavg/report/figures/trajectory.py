"""The training run that Figures 1 to 3 show; it may be unfinished."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from hydra import compose
from omegaconf import open_dict

from phaseavg.config import Settings, check
from phaseavg.errors import UserError
from phaseavg.phases import Schedule
from phaseavg.report.study import CONF
from phaseavg.runs.folder import TRAJECTORY, read_result
from phaseavg.runs.record import METRICS, READ_ERRORS, damage_message, flatten, read_metrics
from phaseavg.sweep.cells import override_key, parse_overrides
from phaseavg.sweep.composing import composing
from phaseavg.targets import build
from phaseavg.training.trajectory import missing_steps

NETWORK = "model=wrn28_10"
"""The network of the paper's figures."""

RUN_DEFAULTS = ("averaging=none", "runs_dir=runs/trajectories", "records_dir=runs/trajectories")
"""Plain SGD, in a separate folder; a figure's own defaults turn on saving the weights."""


@dataclass
class TrajectoryRun:
    """A training run that saves its weights during training.

    Attributes:
        overrides: the Hydra overrides that define the run.
        settings: the run's config.
        name: the config options of data set and network, such as `cifar100-wrn28_10`.
    """

    overrides: list[str]
    settings: Settings
    name: str

    @property
    def weights_folder(self) -> Path:
        """The folder of the saved weights."""
        return self.settings.run_folder / TRAJECTORY

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule of the phases."""
        return build("schedule", self.settings.schedule, Schedule)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row per finished epoch; empty if the run has no metrics file.

        Raises:
            UserError: if the record is damaged.
        """
        folder = self.settings.run_folder
        if not (folder / METRICS).exists():
            return pd.DataFrame()
        try:
            return pd.DataFrame([flatten(line) for line in read_metrics(folder)])
        except READ_ERRORS as error:
            raise UserError(damage_message(folder, error)) from error

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.metrics)

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps per epoch, if an epoch has finished."""
        return int(self.metrics["step"].iloc[0] // self.metrics["epoch"].iloc[0])

    def missing_steps(self, steps: Iterable[int]) -> list[int]:
        """Return the steps without saved weights of all layers."""
        result = read_result(self.settings.run_folder) or {}
        partly = result.get("save_trajectory", "epochs") in ("none", "last_layer")
        return list(steps) if partly else missing_steps(self.weights_folder, steps)

    @property
    def command(self) -> str:
        """The command that trains the run."""
        # A finished run without the weights that a figure needs has to be repeated.
        rerun = ["rerun=true"] if (self.settings.run_folder / "result.json").exists() else []
        return shlex.join(["python", "train.py", *self.overrides, *rerun])


def compose_run(overrides: Sequence[str], defaults: Sequence[str]) -> TrajectoryRun:
    """Compose the config of the run that a figure shows.

    Args:
        overrides: overrides of train.py.
        defaults: the figure's default overrides, which `overrides` may replace.

    Raises:
        UserError: if an override is invalid.
    """
    with composing(CONF):
        keys = {override_key(override) for override in parse_overrides(overrides)}
        # A scale or a preset brings its own network.
        network = () if keys & {"model", "scale", "preset"} else (NETWORK,)
        kept = [o for o in (*network, *RUN_DEFAULTS, *defaults) if o.partition("=")[0] not in keys]
        config = compose("config", [*kept, *overrides], return_hydra_config=True)
    chosen = config.hydra.runtime.choices
    with open_dict(config):
        del config["hydra"]
    name = f"{chosen['dataset']}-{chosen['model']}"
    return TrajectoryRun([*kept, *overrides], check(config), name)


def read_numbers(path: Path, run: TrajectoryRun, columns: Sequence[str]) -> pd.DataFrame:
    """Read the values that a figure saved, without rounding; empty if there is no file.

    Args:
        path: the CSV file.
        run: the figure's run.
        columns: the columns of the numbers, including `run_id`.

    Raises:
        UserError: if the file is damaged, or has the values of another run, which the caller would
            overwrite.
    """
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        numbers = pd.read_csv(path)
        run_ids = set(numbers[columns]["run_id"])  # a KeyError if any column is missing
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged; remove it to measure the numbers again") from error
    if run_ids - {run.settings.run_id}:
        raise UserError(
            f"--output={path.parent}: {path.stem} is from another run; choose another folder for "
            f"run {run.settings.run_id}"
        )
    return numbers
