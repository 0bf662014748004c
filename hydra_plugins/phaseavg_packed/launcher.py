"""`hydra/launcher=packed`. Hydra takes plugins from this namespace package alone.

Every Hydra program of an environment reads this file as it starts, so it imports next to nothing.
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
class PackedLauncherConf:
    """Its options.

    Attributes:
        runs_at_once: how many runs are trained at a time, or `auto`.
    """

    _target_: str = "hydra_plugins.phaseavg_packed.launcher.PackedLauncher"
    runs_at_once: Any = "auto"


ConfigStore.instance().store(
    group="hydra/launcher", name="packed", node=PackedLauncherConf, provider="phaseavg"
)


class PackedLauncher(Launcher):
    """See `phaseavg.sweep.packing`."""

    def __init__(self, runs_at_once: Any) -> None:
        self._runs_at_once = runs_at_once

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives."""
        from phaseavg.sweep.packing import checked

        self._at_once = checked(self._runs_at_once)
        self._given = (hydra_context, task_function, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Train jobs, several at a time."""
        from phaseavg.sweep.packing import launch

        return launch(job_overrides, initial_job_idx, self._at_once, *self._given)
