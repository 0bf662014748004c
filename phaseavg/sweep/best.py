"""Print the best values found by a search sweeper such as Optuna."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from phaseavg.cli import PLAIN_SWEEPERS

RESULTS = "optimization_results.yaml"
"""The file that the sweepers optuna, ax and nevergrad write into `hydra.sweep.dir`."""


class BestValues(Callback):
    """Print the best values at the end of a sweep, as Hydra's log is disabled."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the best values and the path of their file, after a search."""
        path = Path(config.hydra.sweep.dir, RESULTS)
        if config.hydra.runtime.choices["hydra/sweeper"] in PLAIN_SWEEPERS or not path.is_file():
            return
        results = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(results, dict):
            print("; ".join(f"{name}: {value}" for name, value in results.items()), flush=True)
        print(path, flush=True)
