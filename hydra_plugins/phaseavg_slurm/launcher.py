"""`hydra/launcher=slurm`. Hydra only finds plugins in this namespace package.

Every Hydra program in the environment imports this file at startup, so its imports are few.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


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
