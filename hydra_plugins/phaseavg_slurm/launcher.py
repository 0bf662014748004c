"""`hydra/launcher=slurm`. Hydra takes plugins from this namespace package alone.

Every Hydra program of an environment reads this file as it starts, so it imports next to nothing.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """See `phaseavg.sweep.slurm`. Its options are those of `hydra/launcher=submitit_slurm`."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives, as submitit's own launcher does."""
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
        """Submit a Slurm job per run, and wait for all of them."""
        from phaseavg.sweep.slurm import launch

        return launch(self._submitit, job_overrides, initial_job_idx)
