"""The runs of the paper's tables, composed once."""

from collections.abc import Sequence

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from made_cells import CONF, TABLES, chosen, request_for
from omegaconf import DictConfig

from phaseavg.sweep.cells import Run, runs_of


@pytest.fixture(scope="session")
def all_runs() -> dict[str, Run]:
    """Return the runs of chosen cells with three seeds by run id, which take long to compose."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):

        def composed(overrides: Sequence[str]) -> DictConfig:
            return compose("config", list(overrides))

        request = request_for(composed, f"table={','.join(TABLES)}", "seed=0,1,2")
        return runs_of(chosen(request.cells), request.seeds, composed)
