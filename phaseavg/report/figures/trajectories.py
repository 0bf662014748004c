"""Runs that have kept snapshots, and what is behind a figure of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phaseavg.cli import as_option, explained
from phaseavg.config import Settings, build, check
from phaseavg.errors import UserError
from phaseavg.phases import Phase, Schedule
from phaseavg.report.figures.drawing import Drawing, blank
from phaseavg.report.records import metrics_file
from phaseavg.runs.folder import TRAJECTORY
from phaseavg.sweep.cells import key_of, parsed
from phaseavg.training.snapshots import missing_steps

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

    def phase(self, number: int) -> Phase:
        """Return a phase, counted from 1.

        Raises:
            UserError: if there is none.
        """
        phases = self.schedule.phases
        if not 1 <= number <= len(phases):
            raise UserError(f"--phase={number}: choices: 1 to {len(phases)}")
        return phases[number - 1]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row per finished epoch; none if it has not begun.

        Raises:
            UserError: if the file is damaged.
        """
        path = metrics_file(self.settings.run_folder)
        try:
            if not path.is_file():
                return pd.DataFrame()
            return pd.read_json(path, lines=True, precise_float=True)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged ({error}); repeat the run with force=true") from error

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
        return f"python train.py {' '.join(self.overrides)}"

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
        whole = with_defaults([as_option(o, conf) for o in overrides], own)
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            typed = [as_option(override, conf) for override in whole]
            config = compose("config", typed, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explained(error)) from error
    chosen = config.hydra.runtime.choices
    name = f"{chosen['dataset']}-{chosen['model']}"
    OmegaConf.set_struct(config, False)
    config.pop("hydra")
    return Trajectory([o.replace("'", "") for o in whole], check(config), name)


def nothing_of(run: Trajectory, name: str, title: str, output: Path, missing: str = "") -> Drawing:
    """Return a figure of a run of which there is nothing to draw.

    Args:
        run: that is wanted.
        name: of the figure.
        title: of the figure.
        output: the folder of the figures.
        missing: what there is not; by default the whole run.

    Raises:
        UserError: if there is that figure of another run, which would be lost.
    """
    if (output / f"{name}.csv").exists():
        raise UserError(
            f"--output={output}: has {name} of another run; name another folder, or train this "
            f"one: {run.command}"
        )
    return blank(name, title, missing or f"no such run has begun; {run.command}")


def read_numbers(path: Path, run_id: str) -> pd.DataFrame:
    """Return the numbers of a figure that were written before, if they are of the same run.

    Args:
        path: of the file.
        run_id: of the run.

    Returns:
        As written, bit by bit; an empty frame if there is no such file or it is another run's.
    """
    try:
        found = pd.read_csv(path, engine="python")  # the other one rounds in the last bit
    except (OSError, ValueError):
        return pd.DataFrame()
    same = "run_id" in found and set(found["run_id"]) == {run_id}
    return found if same else pd.DataFrame()
