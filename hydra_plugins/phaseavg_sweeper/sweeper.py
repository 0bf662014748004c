"""`hydra/sweeper=phaseavg`. Hydra takes plugins from this namespace package alone.

Every Hydra program of an environment reads this file as it starts, so it imports next to nothing.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class PhaseavgSweeperConf:
    """Its options: none."""

    _target_: str = "hydra_plugins.phaseavg_sweeper.sweeper.PhaseavgSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="phaseavg", node=PhaseavgSweeperConf, provider="phaseavg"
)


class PhaseavgSweeper(Sweeper):
    """See `phaseavg.sweep.sweeper`."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives."""
        self._given = (hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run what `arguments` ask for and is not finished."""
        from phaseavg.sweep.sweeper import sweep

        return sweep(arguments, *self._given)
