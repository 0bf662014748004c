"""Fixtures: the runs of the paper's tables, composed once, and a small table."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import victims as victim
from conftest import in_a_victim
from made_cells import CONF, NETWORKS, TABLE, TABLES, request_for

from phaseavg.sweep.cells import Run, cell_runs, unique_runs
from phaseavg.sweep.composing import cached, composing
from phaseavg.training.step import Step


@pytest.fixture(scope="session")
def all_runs() -> dict[str, Run]:
    """Return the runs of all cells of two networks with three seeds, by run id."""
    with composing(CONF) as (_, compose), cached(compose, [CONF]) as composed:
        request = request_for(composed, f"table={','.join(TABLES)}", "seed=0,1,2")
        cells = [cell for cell in request.cells if cell.model in NETWORKS]
        return unique_runs(cell_runs(cells, request.seeds, composed))


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """Return a config folder with a small table."""
    (tmp_path / "mine/table").mkdir(parents=True)
    (tmp_path / "mine/table/tiny.yaml").write_text(TABLE)
    return str(tmp_path / "mine")


@pytest.fixture(scope="session")
def swept(victims: Any) -> Callable[..., int]:
    """Return a function that runs a sweep, as `victims.sweep_and_die`, and returns its status."""
    return partial(in_a_victim, victims, victim.sweep_and_die)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives an entry for every training step of this process."""
    taken: list[int] = []
    step = Step.__call__

    def counted(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        taken.append(self.state.step)

    monkeypatch.setattr(Step, "__call__", counted)
    return taken
