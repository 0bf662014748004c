"""A study: cells of tables, with the records that there are of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from phaseavg.errors import UserError
from phaseavg.report.cells import CELL, key_of, read_cells, records_of
from phaseavg.report.statistics import SAME, differences, interval
from phaseavg.sweep.cells import Request, Run, read_request, runs_of, whole
from phaseavg.sweep.composing import cached, composing

SHAPING = {
    *("dataset", "model", "optimizer", "schedule", "averaging", "preset"),
    *("batch_size", "batchnorm_batches", "optimizer_state", "weight_decay"),
}
"""Keys that shape a run's numbers; others are about where, how fast, and what is kept."""

PAIRED = ["baseline", "paired_n", "paired_mean", "paired_low", "paired_high"]


@dataclass
class Study:
    """Cells and what the records say of them.

    Attributes:
        request: tables, cells, seeds.
        runs: by run id.
        records: of the runs that have ended, and
        metrics: of these, from `records_of`.
        paper: the published cells that these can be compared with: none of the study's own if
            settings that shape numbers hold for all of them.
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
        return remark_on(self.request)


def remark_on(request: Request) -> str:
    """Return the settings that hold for all cells and shape their numbers, in words."""
    shown = [o for o in request.common if re.split("[.=/@]", o.lstrip("+~"))[0] in SHAPING]
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
    """Return the cells that overrides of a sweep choose, with the records that there are of them.

    Args:
        overrides: as of a sweep; Hydra's own are left out.
        conf: the folder of the configs.
        paper: the published cells.
        all_cells: take whole tables, and of seeds those of the table and those of the overrides.
        more: another folder of configs, as --config-dir of train.py.

    Raises:
        UserError: if there is no such table, column, option or key.
    """
    folders = [conf, more] if more else [conf]
    with composing(conf, more) as (options, compose), cached(compose, folders) as composed:
        request = read_request(without_hydra(overrides), options, composed)
        if not request.tables:
            raise UserError(f"table: is missing; choices: {', '.join(options)}")
        if all_cells:
            request = whole(request)
        runs = runs_of(request.cells, request.seeds, composed)
    others = {key_of(cell) for cell in request.cells} if remark_on(request) else set()
    comparable = paper[[key not in others for key in paper.index]]
    return Study(request, runs, *records_of(runs.values()), comparable)


def summarised(study: Study) -> pd.DataFrame:
    """Return a row per cell: ours, the paper's, the difference.

    Columns: `CELL`; n, seeds; error_mean, error_std (sample deviation; of one run none),
    bn_error_mean, bn_error_std; diverged, how many runs did; paper_mean, paper_std; difference, of
    the means; baseline, the column that it is compared with, if it is; paired_n, the seeds that
    both have with the same execution, paired_mean, the mean of their differences to it, paired_low
    and paired_high, its 95 % t interval; executions, run_ids; averaged, whether its runs average.
    """
    finished = study.finished.sort_values("seed").groupby(CELL, sort=False)
    ours = finished.agg(
        n=("seed", "size"),
        seeds=("seed", lambda values: " ".join(map(str, values))),
        error_mean=("test_error", "mean"),
        error_std=("test_error", "std"),
        bn_error_mean=("bn_test_error", "mean"),
        bn_error_std=("bn_test_error", "std"),
    )
    others = (
        study.rows.sort_values("seed")
        .groupby(CELL, sort=False)
        .agg(
            diverged=("status", lambda values: int((values == "diverged").sum())),
            executions=("execution", lambda values: tuple(dict.fromkeys(values))),
            run_ids=("run_id", tuple),
        )
    )
    published = study.paper.rename(columns={"error_mean": "paper_mean", "error_std": "paper_std"})
    keys = [key_of(cell) for cell in study.request.cells]
    frame = pd.DataFrame(keys, columns=CELL).set_index(CELL).join([ours, others, published])
    frame = frame.reset_index()
    frame["difference"] = frame["error_mean"] - frame["paper_mean"]
    frame = frame.join(pd.DataFrame(_paired(study, keys), columns=PAIRED))
    for column in ("n", "diverged"):
        frame[column] = frame[column].fillna(0).astype(int)
    for column in ("executions", "run_ids"):
        frame[column] = [value if isinstance(value, tuple) else () for value in frame[column]]
    averaged = {
        key_of(cell): not run.prefixes.averages_nothing
        for run in study.runs.values()
        for cell in run.cells
    }
    return frame.assign(averaged=[averaged[key] for key in keys])


def _paired(study: Study, keys: Sequence[tuple[str, ...]]) -> list[tuple[Any, ...]]:
    """Return of each cell what `PAIRED` names."""
    finished = study.finished.set_index(SAME)
    errors = {key: cell["test_error"] for key, cell in finished.groupby(CELL)}
    none = finished["test_error"].iloc[:0]
    rows: list[tuple[Any, ...]] = []
    for key in keys:
        other = study.request.tables[key[0]].baseline.get(key[-1])
        values = differences(errors.get(key, none), errors.get((*key[:-1], other), none))
        span = interval(values) if len(values) else (np.nan, np.nan)
        rows.append((other, len(values), values.mean(), *span))
    return rows
