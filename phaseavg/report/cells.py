"""The cells of the tables beside the records that fill them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from phaseavg.report.statistics import SAME, differences, interval
from phaseavg.runs.provenance import how
from phaseavg.runs.records import load_runs
from phaseavg.sweep.cells import Cell, Run

CELL = ["table", "dataset", "model", "column"]
"""What names a cell, in frames and in results/paper.csv."""

COLUMNS = [
    *(*CELL, "seed", "run_id", "status", "test_error", "bn_test_error", "epochs", "method_seconds"),
    *("averaging_seconds", "device", "execution", "modified", "kept", "before_averaging"),
]

PAIRED = ["baseline", "paired_n", "paired_mean", "paired_low", "paired_high"]


def key_of(cell: Cell) -> tuple[str, ...]:
    """Return what names a cell: `CELL`."""
    return tuple(getattr(cell, key) for key in CELL)


def read_paper(path: Path) -> pd.DataFrame:
    """Return the published cells: columns `CELL`, error_mean and error_std (%, of three seeds)."""
    text = dict.fromkeys(CELL, str)
    return pd.read_csv(path, dtype=text).set_index(CELL)


def execution_of(row: Mapping[str, Any]) -> str:
    """Return in words how a run was computed.

    Args:
        row: of the run, from `load_runs`.
    """
    threads = f"{row['threads']} {'thread' if row['threads'] == '1' else 'threads'}"
    made = [row["device_name"], row["cpu_capability"], threads]
    options = {key.removeprefix("execution."): item for key, item in row.items()}
    made += how({**options, "precision": row["precision"]})
    return ", ".join([*map(str, made), f"torch {row['torch']}"])


def records_of(runs: Iterable[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the records of runs, and their metrics; see `load_runs`.

    Of a run with several records counts the one in its runs_dir. A column `kept` says whether its
    records_dir has one.

    Args:
        runs: of the cells.
    """
    settings = {run.run_id: run.settings for run in runs}
    kept_in = list(dict.fromkeys(one.records_dir for one in settings.values()))
    folders = dict.fromkeys([*(one.runs_dir for one in settings.values()), *kept_in])
    records, metrics = load_runs(*folders)
    records = records[records["run_id"].isin(settings.keys())]
    in_records = records["path"].map(lambda path: path.parent in kept_in).astype(bool)
    kept = set(records.loc[in_records, "run_id"])
    records = records.drop_duplicates("run_id").reset_index(drop=True)
    records["kept"] = records["run_id"].isin(kept)
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
        run.prefixes.key(epoch): row
        | {"test_error": error, "bn_test_error": bn_error, "epochs": epoch}
        | {"before_averaging": True, **nothing}
        for epoch, error, bn_error in zip(
            ends["epoch"], ends["weights.error"], ends["bn.error"], strict=True
        )
    }


def read_cells(runs: Iterable[Run], records: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell and seed of which there is a record.

    Columns: table, dataset, model, column, seed, run_id; of the record: status, test_error and
    bn_test_error (%, without and with a BatchNorm pass where nothing is averaged), epochs,
    method_seconds (training and averaging), of these averaging_seconds; device; execution, in
    words; modified, whether the code had uncommitted changes; kept, whether it is among the records
    that are kept; before_averaging: whether the row is of another run that begins alike.

    A run without averaging that has no record may be a prefix of others, up to a phase end of
    theirs: the errors of their weights before an average replaces them are its own. Of several
    runs the shortest counts.

    Args:
        runs: of the cells.
        records: of these runs, from `records_of`.
        metrics: likewise.
    """
    runs = list(runs)
    found = {
        row["run_id"]: row | {"execution": execution_of(row), "before_averaging": False}
        for row in records.to_dict("records")
    }
    ends: dict[str, dict[str, Any]] = {}
    recorded = [run for run in runs if run.run_id in found]
    for run in sorted(recorded, key=lambda run: found[run.run_id]["epochs"]):
        ends = _ends(run, found[run.run_id], metrics) | ends
    rows = []
    for run in runs:
        row = found.get(run.run_id)
        if row is None and ends and run.prefixes.averages_nothing and run.prefixes.limit:
            row = ends.get(run.prefixes.key(run.epochs))
        if row is not None:
            rows += [row | dict(zip(CELL, key_of(cell), strict=True)) for cell in run.cells]
    return pd.DataFrame(rows, columns=COLUMNS)


def _compared(
    frame: pd.DataFrame, rows: pd.DataFrame, baseline: Mapping[str, Mapping[str, str]]
) -> list[tuple[Any, ...]]:
    """Return of each cell what `PAIRED` names."""
    finished = rows[rows["status"] == "finished"].groupby(CELL)
    errors = {key: cell.set_index(SAME)["test_error"] for key, cell in finished}
    none = rows.iloc[:0].set_index(SAME)["test_error"]
    found: list[tuple[Any, ...]] = []
    for key in frame[CELL].itertuples(index=False, name=None):
        other = baseline.get(key[0], {}).get(key[-1])
        values = differences(errors.get(key, none), errors.get((*key[:-1], other), none))
        span = interval(values) if len(values) else (np.nan, np.nan)
        found.append((other, len(values), values.mean(), *span))
    return found


def summarised(
    cells: Iterable[Cell],
    rows: pd.DataFrame,
    paper: pd.DataFrame,
    baseline: Mapping[str, Mapping[str, str]] | None = None,
) -> pd.DataFrame:
    """Return a row per cell: ours, the paper's, the difference.

    Args:
        cells: in their order.
        rows: from `read_cells`.
        paper: from `read_paper`; cells that are not in it have no published number.
        baseline: by table, which column each is compared with.

    Returns:
        A frame with the columns `CELL`; n, seeds; error_mean, error_std (sample deviation; of one
        run none), bn_error_mean, bn_error_std; diverged, how many runs did; paper_mean, paper_std;
        difference, of the means; baseline, the column that it is compared with, if it is; paired_n,
        the seeds that both have with the same execution, paired_mean, the mean of their differences
        to it, paired_low and paired_high, its 95 % t interval; executions, run_ids.
    """
    frame = pd.DataFrame([key_of(cell) for cell in cells], columns=CELL)
    finished = rows[rows["status"] == "finished"].sort_values("seed").groupby(CELL, sort=False)
    ours = finished.agg(
        n=("seed", "size"),
        seeds=("seed", lambda values: " ".join(map(str, values))),
        error_mean=("test_error", "mean"),
        error_std=("test_error", "std"),
        bn_error_mean=("bn_test_error", "mean"),
        bn_error_std=("bn_test_error", "std"),
    )
    every = rows.sort_values("seed").groupby(CELL, sort=False)
    others = every.agg(
        diverged=("status", lambda values: int((values == "diverged").sum())),
        executions=("execution", lambda values: tuple(dict.fromkeys(values))),
        run_ids=("run_id", tuple),
    )
    published = paper.rename(columns={"error_mean": "paper_mean", "error_std": "paper_std"})
    frame = frame.set_index(CELL).join([ours, others, published]).reset_index()
    frame["difference"] = frame["error_mean"] - frame["paper_mean"]
    frame = frame.join(pd.DataFrame(_compared(frame, rows, baseline or {}), columns=PAIRED))
    for column in ("n", "diverged"):
        frame[column] = frame[column].fillna(0).astype(int)
    for column in ("executions", "run_ids"):
        frame[column] = [value if isinstance(value, tuple) else () for value in frame[column]]
    return frame
