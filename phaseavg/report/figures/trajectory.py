"""The run that Figures 1 to 3 are drawn from, as far as it has come."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from hydra import compose
from omegaconf import open_dict

from phaseavg.config import Settings, check
from phaseavg.errors import UserError
from phaseavg.phases import Schedule
from phaseavg.runs.folder import TRAJECTORY
from phaseavg.runs.record import DAMAGED, METRICS, damage, flattened, read_metrics
from phaseavg.sweep.cells import key_of, parsed
from phaseavg.sweep.composing import composing
from phaseavg.targets import build

NETWORK = "model=wrn28_10"
"""The network of the paper's figures."""

APART = ("averaging=none", "runs_dir=runs/trajectories", "records_dir=runs/trajectories")
"""Plain SGD, in a folder apart from runs that save no trajectory."""


@dataclass
class Trajectory:
    """A run that saves its trajectory.

    Attributes:
        overrides: that make it.
        settings: its config.
        name: its data set and network, as their config groups call them.
    """

    overrides: list[str]
    settings: Settings
    name: str

    @property
    def folder(self) -> Path:
        """The folder of its snapshots."""
        return self.settings.run_folder / TRAJECTORY

    @cached_property
    def schedule(self) -> Schedule:
        """Its phases."""
        return build("schedule", self.settings.schedule, Schedule)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row per finished epoch; empty if the run is not on this machine.

        Raises:
            UserError: if the record is damaged.
        """
        folder = self.settings.run_folder
        if not (folder / METRICS).exists():
            return pd.DataFrame()
        try:
            return pd.DataFrame([flattened(line) for line in read_metrics(folder)])
        except DAMAGED as error:
            raise UserError(damage(folder, error)) from error

    @property
    def epochs(self) -> int:
        """Finished epochs."""
        return len(self.metrics)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch, once one is finished."""
        return int(self.metrics["step"].iloc[0] // self.metrics["epoch"].iloc[0])

    @property
    def command(self) -> str:
        """The command that trains it."""
        again = ["rerun=true"] if (self.settings.run_folder / "result.json").exists() else []
        return shlex.join(["python", "train.py", *self.overrides, *again])


def read_trajectory(overrides: Sequence[str], defaults: Sequence[str], conf: Path) -> Trajectory:
    """Return the run that a figure is drawn from.

    Args:
        overrides: as of train.py.
        defaults: of the figure, which they may replace.
        conf: the folder of the configs.

    Raises:
        UserError: if the overrides are wrong.
    """
    with composing(conf):
        typed = {key_of(override) for override in parsed(overrides)}
        network = () if typed & {"model", "preset"} else (NETWORK,)
        own = [o for o in (*network, *APART, *defaults) if o.partition("=")[0] not in typed]
        config = compose("config", [*own, *overrides], return_hydra_config=True)
    chosen = config.hydra.runtime.choices
    with open_dict(config):
        del config["hydra"]
    name = f"{chosen['dataset']}-{chosen['model']}"
    return Trajectory([*own, *overrides], check(config), name)


def read_numbers(path: Path, run: Trajectory, columns: Sequence[str]) -> pd.DataFrame:
    """Return the numbers of a figure that were written before, bit by bit; empty if there are none.

    Args:
        path: of the CSV file.
        run: of the figure.
        columns: of the numbers, `run_id` among them.

    Raises:
        UserError: if the file is damaged, or of another run, whose numbers would be lost.
    """
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        numbers = pd.read_csv(path, engine="python")  # the other one rounds in the last bit
        owners = set(numbers[columns]["run_id"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged; remove it to measure its numbers again") from error
    if owners - {run.settings.run_id}:
        raise UserError(
            f"--output={path.parent}: has {path.stem} of another run; name another folder for "
            f"that of {run.settings.run_id}"
        )
    return numbers
