"""A study: the cells that are asked for, and the records that there are of them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from phaseavg.config import Settings, check
from phaseavg.errors import UserError
from phaseavg.report.cells import key_of, read_cells, records_of
from phaseavg.sweep.cells import Cell, Request, Run, read_request, runs_of, whole
from phaseavg.sweep.composing import Compose, cached, composing

SHAPING = {
    *("dataset", "model", "optimizer", "schedule", "averaging", "preset"),
    *("batch_size", "batchnorm_batches", "optimizer_state", "weight_decay"),
}
"""Keys that shape a run's numbers; others are about where, how fast, and what is kept."""


@dataclass
class Study:
    """Cells and what the records say of them.

    Attributes:
        request: tables, cells, seeds.
        runs: by run id.
        records: of the runs that have ended, and
        metrics: of these, from `records_of`.
        paper: the published cells that these can be compared with. Those whose recipe is another
            than in their table alone are not in it: other settings, such as another width, hold
            for all cells.
    """

    request: Request
    runs: dict[str, Run]
    records: pd.DataFrame
    metrics: pd.DataFrame
    paper: pd.DataFrame

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The records by cell and seed; see `read_cells`."""
        return read_cells(self.runs.values(), self.records, self.metrics)

    @property
    def finished(self) -> pd.DataFrame:
        """Those of `rows` whose run has finished."""
        return self.rows[self.rows["status"] == "finished"]

    @property
    def networks(self) -> list[tuple[str, str]]:
        """The (data set, network) that its cells have, in order."""
        return list(dict.fromkeys((cell.dataset, cell.model) for cell in self.request.cells))

    def of(self, network: tuple[str, str]) -> "Study":
        """Return the part of the study that is of one (data set, network)."""
        cells = [cell for cell in self.request.cells if (cell.dataset, cell.model) == network]
        runs = {
            run_id: replace(run, cells=own)
            for run_id, run in self.runs.items()
            if (own := [cell for cell in run.cells if cell in cells])
        }
        return replace(self, request=replace(self.request, cells=cells), runs=runs)

    @property
    def remark(self) -> str:
        """The settings that hold for all cells, in words."""
        shown = [o for o in self.request.common if re.split("[.=/@]", o.lstrip("+~"))[0] in SHAPING]
        return f"With {' '.join(shown)}" if shown else ""


def without_hydra(overrides: Sequence[str]) -> list[str]:
    """Return overrides without those of Hydra itself."""
    return [o for o in overrides if not o.lstrip("+~").startswith("hydra")]


def read_study(
    overrides: Sequence[str],
    conf: Path,
    paper: pd.DataFrame,
    all_cells: bool = False,
    more: Path | None = None,
) -> Study:
    """Return the cells that are asked for, with the records that there are of them.

    Args:
        overrides: as of a sweep; Hydra's own are left out.
        conf: the folder of the configs.
        paper: the published cells.
        all_cells: take whole tables, and of seeds those of the table and those asked for.
        more: another folder of configs, as --config-dir of train.py.

    Raises:
        UserError: if what is asked for does not exist.
    """
    folders = [conf, more] if more else [conf]
    with composing(conf, more) as (options, compose), cached(compose, folders) as composed:
        request = read_request(without_hydra(overrides), options, composed)
        if not request.tables:
            raise UserError(f"table: is missing; choices: {', '.join(options)}")
        if all_cells:
            request = whole(request)
        runs = runs_of(request.cells, request.seeds, composed)
        others = other_recipes(request, runs.values(), paper, composed)
    beside = paper[[key not in others for key in paper.index]]
    return Study(request, runs, *records_of(runs.values()), beside)


def other_recipes(
    request: Request, runs: Iterable[Run], paper: pd.DataFrame, compose: Compose
) -> set[tuple[str, ...]]:
    """Return the published cells whose recipe is another than in their table alone."""
    first: dict[tuple[str, ...], tuple[Cell, Settings]] = {}
    for run in runs if request.common else ():
        for cell in run.cells:
            first.setdefault(key_of(cell), (cell, run.settings))
    others = set()
    for key, (cell, settings) in first.items():
        if key in paper.index:
            alone = compose(cell.overrides[len(request.common) :])
            alone.seed = settings.seed
            if check(alone).run_id != settings.run_id:
                others.add(key)
    return others
