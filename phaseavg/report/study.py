"""A study: table cells with their records."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from phaseavg.errors import UserError
from phaseavg.identity import RECIPE
from phaseavg.report.cells import CELL, cell_key, read_cells, read_paper, read_records
from phaseavg.report.statistics import PAIR_KEYS, differences, interval
from phaseavg.runs.provenance import REPOSITORY
from phaseavg.sweep.cells import (
    STUDY,
    Request,
    Run,
    cell_runs,
    override_key,
    parse_overrides,
    read_request,
    select_all_cells,
    table_choices,
    unique_runs,
)
from phaseavg.sweep.composing import cached, composing

RESULT_KEYS = {*RECIPE, "weight_decay", "scale", "preset"}
"""Config keys that affect a run's results; other keys affect location, speed and saved files."""

CONF = REPOSITORY / "conf"

FULL_SIZE = ("scale=full", "preset=none")
"""Overrides that keep the paper's settings."""

PAIRED = ["baseline", "paired_n", "paired_mean", "paired_low", "paired_high"]


@dataclass
class Study:
    """Table cells and their records.

    Attributes:
        request: tables, cells and seeds.
        runs: the runs by run id.
        records: the records of ended runs, from `read_records`.
        metrics: the metrics of ended runs, from `read_records`.
        paper: all published cells.
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
        """The rows of finished runs."""
        return self.rows[self.rows["status"] == "finished"]

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The cells by the columns `CELL`, in order."""
        return [cell_key(cell) for cell in self.request.cells]

    @property
    def networks(self) -> list[tuple[str, ...]]:
        """Each (data set, network) of the cells, in order."""
        return list(dict.fromkeys(key[1:3] for key in self.keys))

    def restrict_to(self, network: tuple[str, ...]) -> "Study":
        """Return the part of the study with one (data set, network)."""
        cells = [cell for cell in self.request.cells if (cell.dataset, cell.model) == network]
        runs = {
            run_id: replace(run, cells=selected)
            for run_id, run in self.runs.items()
            if (selected := [cell for cell in run.cells if cell in cells])
        }
        return replace(self, request=replace(self.request, cells=cells), runs=runs)

    @property
    def changes(self) -> list[str]:
        """The overrides of all cells that change the paper's settings; observers do not."""

        def key(override: str) -> str:
            name = override.lstrip("+~").partition("=")[0].rpartition("@")[2]
            return re.split("[./]", name)[0]

        common = self.request.common
        return [o for o in common if o not in FULL_SIZE and key(o) in RESULT_KEYS]

    @property
    def remark(self) -> str:
        """The changes in words."""
        return f"With {' '.join(self.changes)}" if self.changes else ""

    @property
    def comparable(self) -> pd.DataFrame:
        """The published cells; none if the overrides change the paper's settings."""
        return self.paper.iloc[:0] if self.changes else self.paper

    def require_output(self, output: Path | None) -> None:
        """Raise a UserError if results of changed settings would replace published results."""
        changes = [o for o in self.changes if override_key(parse_overrides([o])[0]) not in STUDY]
        if changes and output is None:
            raise UserError(f"{changes[0]}: changes the results; select a folder with --output")


def without_hydra(overrides: Sequence[str]) -> list[str]:
    """Return overrides without Hydra's own settings."""
    return [o for o in overrides if not o.lstrip("+~").startswith("hydra")]


def read_study(
    overrides: Sequence[str], all_cells: bool = False, extra_conf: Path | None = None
) -> Study:
    """Return the cells that the overrides of a sweep select, with their records.

    Args:
        overrides: overrides of a sweep; Hydra's own settings are ignored.
        all_cells: include all cells of the tables, and the seeds of both tables and overrides.
        extra_conf: a further config folder, like --config-dir of train.py.

    Raises:
        UserError: if a table, column, option or key does not exist.
    """
    folders = [CONF, extra_conf] if extra_conf else [CONF]
    with composing(CONF, extra_conf) as (options, compose), cached(compose, folders) as composed:
        request = read_request(without_hydra(overrides), options, composed)
        if not request.tables:
            raise UserError(f"table: is missing; choices: {table_choices(options)}")
        if all_cells:
            request = select_all_cells(request)
        runs = unique_runs(cell_runs(request.cells, request.seeds, composed))
    return Study(request, runs, *read_records(runs.values()), read_paper())


def summarise(study: Study) -> pd.DataFrame:
    """Return a row per cell: our error, the paper's error, the difference.

    Columns: `CELL`; n, seeds; error_mean, error_std (sample standard deviation, NaN for one run),
    bn_error_mean, bn_error_std; diverged, the number of diverged runs; paper_mean, paper_std;
    difference, of the means; baseline, the compared column, if any; paired_n, the number of pairs
    by seed and execution, paired_mean, the mean difference from the baseline, paired_low and
    paired_high, a 95 % t interval; executions, run_ids; averaged, whether the runs average.
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
    details = (
        study.rows.sort_values("seed")
        .groupby(CELL, sort=False)
        .agg(
            diverged=("status", lambda values: int((values == "diverged").sum())),
            executions=("execution", lambda values: tuple(dict.fromkeys(values))),
            run_ids=("run_id", tuple),
        )
    )
    published = study.comparable.rename(
        columns={"error_mean": "paper_mean", "error_std": "paper_std"}
    )
    frame = pd.DataFrame(study.keys, columns=CELL).set_index(CELL).join([ours, details, published])
    frame = frame.reset_index()
    frame["difference"] = frame["error_mean"] - frame["paper_mean"]
    frame = frame.join(pd.DataFrame(_paired(study), columns=PAIRED))
    for column in ("n", "diverged"):
        frame[column] = frame[column].fillna(0).astype(int)
    for column in ("executions", "run_ids"):
        frame[column] = [value if isinstance(value, tuple) else () for value in frame[column]]
    averaged = {
        cell_key(cell): not run.prefixes.averages_nothing
        for run in study.runs.values()
        for cell in run.cells
    }
    return frame.assign(averaged=[averaged[key] for key in study.keys])


def _paired(study: Study) -> list[tuple[Any, ...]]:
    """Return a row per cell with the columns `PAIRED`."""
    finished = study.finished.set_index(PAIR_KEYS)
    errors = {key: cell["test_error"] for key, cell in finished.groupby(CELL)}
    none = finished["test_error"].iloc[:0]
    rows: list[tuple[Any, ...]] = []
    for key in study.keys:
        baseline = study.request.tables[key[0]].baseline.get(key[-1])
        values = differences(errors.get(key, none), errors.get((*key[:-1], baseline), none))
        rows.append((baseline, len(values), values.mean(), *interval(values)))
    return rows
