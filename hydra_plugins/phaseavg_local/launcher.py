"""`hydra/launcher=local`. Hydra only finds plugins in this namespace package.

Every Hydra program in the environment imports this file at startup, so its imports are few.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LocalLauncherConf:
    """The options of the launcher.

    Attributes:
        runs_per_device: the number of runs per GPU, or on the CPU. `auto` means 1 per GPU, and on
            the CPU cores divided by `execution.threads`.
    """

    _target_: str = "hydra_plugins.phaseavg_local.launcher.LocalLauncher"
    runs_per_device: Any = "auto"


ConfigStore.instance().store(
    group="hydra/launcher", name="local", node=LocalLauncherConf, provider="phaseavg"
)


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
