"""The sweeper `phaseavg` and the launchers `local` and `slurm`; their configs are in conf/hydra.

Hydra only finds plugins in this namespace package. Every Hydra program in the environment imports
this file at startup, so its imports are few.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PhaseavgSweeper(Sweeper):
    """Sweeper plugin; see `phaseavg.sweep.sweeper`."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the arguments."""
        self._job_context = (hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Train the runs that `arguments` request and that are not finished."""
        from phaseavg.sweep.sweeper import sweep

        return sweep(arguments, *self._job_context)


class LocalLauncher(Launcher):
    """Launcher plugin; see `phaseavg.sweep.launcher`."""

    def __init__(self, runs_per_device: Any) -> None:
        self._runs_per_device = runs_per_device

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Store the arguments and create the slots."""
        from phaseavg.sweep.launcher import slots_for

        self._slots = slots_for(config.execution, self._runs_per_device)
        self._job_context = (hydra_context, task_function, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Train jobs, with one job per slot at a time."""
        from phaseavg.sweep.launcher import launch

        return launch(job_overrides, initial_job_idx, self._slots, *self._job_context)


class SlurmLauncher(Launcher):
    """Launcher plugin with the options of `submitit_slurm`; see `phaseavg.sweep.slurm`."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Pass the arguments to the submitit launcher."""
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import (
            SlurmLauncher as Submitit,
        )

        self._submitit = Submitit(**self._options)
        self._submitit.setup(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit one Slurm job per run or prefix, and wait for all jobs."""
        from phaseavg.sweep.slurm import launch

        return launch(self._submitit, job_overrides, initial_job_idx)
