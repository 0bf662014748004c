"""Match table cells with the records of their runs."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from phaseavg.runs.provenance import REPOSITORY
from phaseavg.runs.records import load_runs
from phaseavg.sweep.cells import Cell, Run

CELL = ["table", "dataset", "model", "column"]
"""The columns that identify a cell, in data frames and in results/paper.csv."""

COLUMNS = [
    *(*CELL, "seed", "run_id", "status", "test_error", "bn_test_error", "epochs", "method_seconds"),
    *("averaging_seconds", "execution", "modified", "before_averaging"),
]


def cell_key(cell: Cell) -> tuple[str, ...]:
    """Return a cell's values of the columns `CELL`."""
    return tuple(getattr(cell, key) for key in CELL)


def read_paper() -> pd.DataFrame:
    """Return the published cells: columns `CELL`, error_mean and error_std (%, three seeds)."""
    text = dict.fromkeys(CELL, str)
    return pd.read_csv(REPOSITORY / "results/paper.csv", dtype=text).set_index(CELL)


def read_records(runs: Iterable[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the records and metrics of runs; see `load_runs`.

    If a run has several records, the record in its runs_dir counts.
    """
    settings = {run.run_id: run.settings for run in runs}
    folders = [config.runs_dir for config in settings.values()]
    folders += [config.records_dir for config in settings.values()]
    records, metrics = load_runs(*dict.fromkeys(folders))
    records = records[records["run_id"].isin(settings.keys())]
    records = records.drop_duplicates("run_id").reset_index(drop=True)
    return records, metrics[metrics["path"].isin(records["path"])]


def _ends(run: Run, row: Mapping[str, Any], metrics: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return a row per phase end of a run, with the errors before an average replaced the weights.

    The keys are prefix keys; a run without averaging that ends there has the same key.
    """
    if row["status"] != "finished":
        return {}
    ends = metrics[(metrics["run_id"] == row["run_id"]) & metrics["replaced"].notna()]
    ends = ends[ends["epoch"] <= run.prefixes.limit]
    nothing = dict.fromkeys(("method_seconds", "averaging_seconds"), np.nan)
    return {
        run.prefixes.key(end["epoch"]): row
        | {"test_error": end["weights.error"], "bn_test_error": end["bn.error"]}
        | {"epochs": end["epoch"], "before_averaging": True, **nothing}
        for end in ends.to_dict("records")
    }


def read_cells(runs: Iterable[Run], records: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell and seed that has a record.

    A run without averaging may have no record but be a prefix of another run, up to one of its
    phase ends. Then it has the errors of that run's weights before an average replaced them. If
    several runs qualify, the shortest counts.

    Args:
        runs: the runs of the cells.
        records: the records of these runs, from `read_records`.
        metrics: the metrics of these runs, from `read_records`.

    Returns:
        A frame with the columns table, dataset, model, column, seed, run_id, status; test_error
        and bn_test_error (%, without and with a BatchNorm pass if the run does not average);
        epochs; method_seconds (training and averaging); averaging_seconds; execution, a
        description; modified, whether the code had uncommitted changes; before_averaging, whether
        the errors come from another run with the same prefix.
    """
    runs = list(runs)
    recorded = {
        row["run_id"]: row | {"before_averaging": False} for row in records.to_dict("records")
    }
    ends: dict[str, dict[str, Any]] = {}
    available = [run for run in runs if run.run_id in recorded]
    for run in sorted(available, key=lambda run: recorded[run.run_id]["epochs"]):
        ends = _ends(run, recorded[run.run_id], metrics) | ends
    rows = []
    for run in runs:
        row = recorded.get(run.run_id)
        if row is None and ends and run.prefixes.averages_nothing and run.prefixes.limit:
            row = ends.get(run.prefixes.key(run.epochs))
        if row is not None:
            rows += [row | dict(zip(CELL, cell_key(cell), strict=True)) for cell in run.cells]
    return pd.DataFrame(rows, columns=COLUMNS)
