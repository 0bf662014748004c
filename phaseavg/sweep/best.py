"""The best values that a searching sweeper, such as Optuna's, has found."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from phaseavg.cli import PLAIN_SWEEPERS

RESULTS = "optimization_results.yaml"
"""What the sweepers optuna, ax and nevergrad write into `hydra.sweep.dir`."""


class BestValues(Callback):
    """Prints at the end of a sweep what its sweeper has found best; Hydra's own log is off."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the best values and where they are, if the sweeper searches."""
        path = Path(config.hydra.sweep.dir, RESULTS)
        if config.hydra.runtime.choices["hydra/sweeper"] in PLAIN_SWEEPERS or not path.is_file():
            return
        found = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(found, dict):
            print("; ".join(f"{name}: {value}" for name, value in found.items()), flush=True)
        print(path, flush=True)
