"""`hydra/sweeper=phaseavg`. Hydra only finds plugins in this namespace package.

Every Hydra program in the environment imports this file at startup, so its imports are few.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class PhaseavgSweeperConf:
    """The options of the sweeper: none."""

    _target_: str = "hydra_plugins.phaseavg_sweeper.sweeper.PhaseavgSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="phaseavg", node=PhaseavgSweeperConf, provider="phaseavg"
)


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
