"""Runs that have kept snapshots, and what is behind a figure of one."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from phaseavg.cli import CONFIG_ERRORS, explained
from phaseavg.config import Settings, check
from phaseavg.errors import UserError
from phaseavg.phases import Schedule
from phaseavg.runs.folder import TRAJECTORY
from phaseavg.runs.record import DAMAGED, damage, flattened, read_record
from phaseavg.sweep.cells import key_of, parsed
from phaseavg.targets import build
from phaseavg.training.trajectory import missing_steps

SIZE = ("model=wrn28_10",)
"""What the paper draws, unless another network, or a preset with one, is asked for."""

APART = ("averaging=none", "runs_dir=runs/trajectories", "records_dir=runs/trajectories")
"""Of every trajectory: plain SGD, apart from runs that have no snapshots."""


def with_defaults(overrides: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return the overrides of a figure's run: what is asked for, and what is not said of it.

    Args:
        overrides: as of train.py.
        own: the figure's.
    """
    said = {key_of(override) for override in parsed(overrides)}
    size = () if said & {"model", "preset"} else SIZE
    own = [o for o in (*size, *APART, *own) if o.partition("=")[0] not in said]
    return [*own, *overrides]


@dataclass
class Trajectory:
    """A run with snapshots, as far as it has come.

    Attributes:
        overrides: that make it.
        settings: its config.
        name: of its data set and its network, as their config groups call them.
    """

    overrides: list[str]
    settings: Settings
    name: str

    @property
    def folder(self) -> Path:
        """Where its snapshots are."""
        return self.settings.run_folder / TRAJECTORY

    @cached_property
    def schedule(self) -> Schedule:
        """Its phases."""
        return build("schedule", self.settings.schedule, Schedule)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row per finished epoch; none if it has not begun.

        Raises:
            UserError: if the record is damaged.
        """
        folder = self.settings.run_folder
        try:
            return pd.DataFrame([flattened(line) for line in read_record(folder).metrics])
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
        """What trains it."""
        again = ["rerun=true"] if (self.settings.run_folder / "result.json").exists() else []
        return shlex.join(["python", "train.py", *self.overrides, *again])

    def lacks(self, steps: Sequence[int]) -> str:
        """Return what there is not of the snapshots after some steps, in words; nothing if all."""
        missing = missing_steps(self.folder, steps)
        if not missing:
            return ""
        return f"{len(missing)} of {len(steps)} snapshots in {self.folder}; {self.command}"


def read_trajectory(overrides: Sequence[str], own: Sequence[str], conf: Path) -> Trajectory:
    """Return the run that a figure is drawn from.

    Args:
        overrides: as of train.py.
        own: the figure's.
        conf: the folder of the configs.

    Raises:
        UserError: if the overrides are not understood.
    """
    GlobalHydra.instance().clear()
    try:
        whole = with_defaults(overrides, own)
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            config = compose("config", whole, return_hydra_config=True)
    except CONFIG_ERRORS as error:
        raise UserError(explained(error)) from error
    chosen = config.hydra.runtime.choices
    name = f"{chosen['dataset']}-{chosen['model']}"
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    return Trajectory(whole, check(config), name)


def read_numbers(path: Path, run: Trajectory, columns: Sequence[str]) -> pd.DataFrame:
    """Return the numbers of a figure that were written before.

    Args:
        path: of the file.
        run: that the figure is of.
        columns: that it has, `run_id` among them.

    Returns:
        As written, bit by bit; an empty frame if there is no such file.

    Raises:
        UserError: if the file is damaged, or of another run, whose numbers would be lost.
    """
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        found = pd.read_csv(path, engine="python")  # the other one rounds in the last bit
        whole = set(columns) <= set(found)
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged; remove it, and what it has is measured anew")
    if set(found["run_id"]) - {run.settings.run_id}:
        raise UserError(
            f"--output={path.parent}: has {path.stem} of another run; name another folder for "
            f"that of {run.settings.run_id}"
        )
    return found
