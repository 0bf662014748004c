"""The cells of the tables beside the records that fill them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from phaseavg.runs.provenance import how
from phaseavg.runs.records import load_runs
from phaseavg.sweep.cells import Cell, Run

CELL = ["table", "dataset", "model", "column"]
"""What names a cell, in frames and in results/paper.csv."""

COLUMNS = [
    *(*CELL, "seed", "run_id", "status", "test_error", "bn_test_error", "epochs", "method_seconds"),
    *("averaging_seconds", "execution", "modified", "before_averaging"),
]


def key_of(cell: Cell) -> tuple[str, ...]:
    """Return what names a cell: `CELL`."""
    return tuple(getattr(cell, key) for key in CELL)


def read_paper(path: Path) -> pd.DataFrame:
    """Return the published cells: columns `CELL`, error_mean and error_std (%, of three seeds)."""
    text = dict.fromkeys(CELL, str)
    return pd.read_csv(path, dtype=text).set_index(CELL)


def execution_of(row: Mapping[str, Any]) -> str:
    """Return in words how a run was computed, from its row in `load_runs`."""
    threads = f"{row['threads']} {'thread' if row['threads'] == '1' else 'threads'}"
    made = [row["device_name"], row["cpu_capability"], threads]
    options = {key.removeprefix("execution."): item for key, item in row.items()}
    made += how({**options, "precision": row["precision"]})
    return ", ".join([*map(str, made), f"torch {row['torch']}"])


def records_of(runs: Iterable[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the records of the runs of cells, and their metrics; see `load_runs`.

    Of a run with several records counts the one in its runs_dir.
    """
    settings = {run.run_id: run.settings for run in runs}
    folders = [one.runs_dir for one in settings.values()]
    folders += [one.records_dir for one in settings.values()]
    records, metrics = load_runs(*dict.fromkeys(folders))
    records = records[records["run_id"].isin(settings.keys())]
    records = records.drop_duplicates("run_id").reset_index(drop=True)
    return records, metrics[metrics["path"].isin(records["path"])]


def _ends(run: Run, row: Mapping[str, Any], metrics: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return rows of the weights that a run had at its phase ends, before an average replaced them.

    By the key of the prefix, as of runs without averaging that end there.
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
    """Return a row per cell and seed of which there is a record.

    A run without averaging that has no record may be a prefix of others, up to a phase end of
    theirs: the errors of their weights before an average replaces them are its own. Of several
    runs the shortest counts.

    Args:
        runs: of the cells.
        records: of these runs, from `records_of`.
        metrics: likewise.

    Returns:
        A frame with the columns table, dataset, model, column, seed, run_id; of the record: status,
        test_error and bn_test_error (%, without and with a BatchNorm pass where nothing is
        averaged), epochs, method_seconds (training and averaging), of these averaging_seconds;
        execution, in words; modified, whether the code had uncommitted changes;
        before_averaging, whether the row is of another run that begins alike.
    """
    runs = list(runs)
    recorded = {
        row["run_id"]: row | {"execution": execution_of(row), "before_averaging": False}
        for row in records.to_dict("records")
    }
    ends: dict[str, dict[str, Any]] = {}
    own = [run for run in runs if run.run_id in recorded]
    for run in sorted(own, key=lambda run: recorded[run.run_id]["epochs"]):
        ends = _ends(run, recorded[run.run_id], metrics) | ends
    rows = []
    for run in runs:
        row = recorded.get(run.run_id)
        if row is None and ends and run.prefixes.averages_nothing and run.prefixes.limit:
            row = ends.get(run.prefixes.key(run.epochs))
        if row is not None:
            rows += [row | dict(zip(CELL, key_of(cell), strict=True)) for cell in run.cells]
    return pd.DataFrame(rows, columns=COLUMNS)
