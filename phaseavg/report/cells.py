"""The cells of the tables beside the records that fill them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.report.records import read_row
from phaseavg.report.statistics import SAME, differences, interval
from phaseavg.runs.provenance import how
from phaseavg.runs.record import has_ended, read_result
from phaseavg.sweep.cells import Cell, Run

CELL = ["table", "dataset", "model", "column"]
"""What names a cell, in frames and in results/paper.csv."""

COLUMNS = [
    *(*CELL, "seed", "run_id", "status", "test_error", "bn_test_error", "epochs", "method_seconds"),
    *("averaging_seconds", "device", "execution", "modified", "kept", "before_averaging"),
]

PAIRED = ["against", "paired_n", "paired_mean", "paired_low", "paired_high"]


def key_of(cell: Cell) -> tuple[str, ...]:
    """Return what names a cell: `CELL`."""
    return tuple(getattr(cell, key) for key in CELL)


def read_paper(path: Path) -> pd.DataFrame:
    """Return the published cells: columns `CELL`, error_mean and error_std (%, of three seeds)."""
    text = dict.fromkeys(CELL, str)
    return pd.read_csv(path, dtype=text).set_index(CELL)


def record_of(settings: Settings) -> Path | None:
    """Return where the record of a run is; None if it has none."""
    return next((place for place in settings.places if has_ended(place)), None)


def execution_of(row: Mapping[str, Any]) -> str:
    """Return in words how a run was computed.

    Args:
        row: from `read_row`.
    """
    threads = f"{row['threads']} {'thread' if row['threads'] == '1' else 'threads'}"
    made = [row["device_name"], row["cpu_capability"], threads]
    options = {key.removeprefix("execution."): item for key, item in row.items()}
    made += how({**options, "precision": row["precision"]})
    return ", ".join([*map(str, made), f"torch {row['torch']}"])


def _checked_row(run: Run, path: Path) -> dict[str, Any]:
    """Return what a record says, if it is the run's own.

    Raises:
        UserError: if it is damaged, or another run's.
    """
    row, expected = read_row(path), run.settings.run_id
    if row["run_id"] != expected:
        raise UserError(
            f"{path}: a damaged record (it is not that of {expected}); move it away and repeat the "
            "run, or see `make records`"
        )
    kept = has_ended(run.settings.places[1])
    return row | {"execution": execution_of(row), "kept": kept, "before_averaging": False}


def averages(run: Run) -> bool:
    """Return whether an average ever replaces a run's weights."""
    return not run.settings.averaging["_target_"].endswith("NoAveraging")


def _course(run: Run, epochs: int) -> tuple[Any, ...]:
    """Return what two runs have in common whose weights after so many epochs are the same."""
    return run.trajectory.key(epochs), run.settings.batchnorm_batches


def _ends(run: Run, row: Mapping[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return rows of the weights that a run had at its phase ends, before an average replaced them.

    By `_course`, as of runs without averaging that end there.
    """
    if row["status"] != "finished" or not run.trajectory:
        return {}
    phases = read_result(row["path"]).get("phases", [])
    nothing = dict.fromkeys(("method_seconds", "averaging_seconds"), np.nan)
    return {
        _course(run, phase["epoch"]): row
        | {"test_error": phase["test_error"], "bn_test_error": phase.get("bn_test_error")}
        | {"epochs": phase["epoch"], "before_averaging": True, **nothing}
        for phase in phases
        if "test_error" in phase
    }


def read_cells(runs: Iterable[Run], left_out: list[str] | None = None) -> pd.DataFrame:
    """Return a row per cell and seed of which there is a record.

    Columns: table, dataset, model, column, seed, run_id; of the record: status, test_error and
    bn_test_error (%, without and with a BatchNorm pass where nothing is averaged), epochs,
    method_seconds (training and averaging), of these averaging_seconds; device; execution, in
    words; modified, whether the code had uncommitted changes; kept, whether it is among the records
    that are kept; before_averaging: whether the row is of another run of the same trajectory.

    A run without averaging that has no record is the course of others up to a phase end of theirs:
    the errors of their weights before an average replaces them are its own. Of several runs the
    shortest counts.

    Args:
        runs: of the cells.
        left_out: takes what is wrong with each damaged record, which then does not count.

    Raises:
        UserError: if a record is damaged and nothing takes that.
    """
    runs = list(runs)
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        if path := record_of(run.settings):
            try:
                found[run.settings.run_id] = _checked_row(run, path)
            except UserError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
    ends: dict[tuple[Any, ...], dict[str, Any]] = {}
    recorded = [run for run in runs if run.settings.run_id in found]
    for run in sorted(recorded, key=lambda run: found[run.settings.run_id]["epochs"]):
        ends = _ends(run, found[run.settings.run_id]) | ends
    rows = []
    for run in runs:
        row = found.get(run.settings.run_id)
        if row is None and ends and not averages(run) and run.trajectory:
            row = ends.get(_course(run, run.trajectory.total_epochs))
        if row is not None:
            rows += [row | dict(zip(CELL, key_of(cell), strict=True)) for cell in run.cells]
    return pd.DataFrame(rows, columns=COLUMNS)


def _compared(
    frame: pd.DataFrame, rows: pd.DataFrame, against: Mapping[str, Mapping[str, str]]
) -> list[tuple[Any, ...]]:
    """Return of each cell what `PAIRED` names."""
    finished = rows[rows["status"] == "finished"].groupby(CELL)
    errors = {key: cell.set_index(SAME)["test_error"] for key, cell in finished}
    none = rows.iloc[:0].set_index(SAME)["test_error"]
    found: list[tuple[Any, ...]] = []
    for key in frame[CELL].itertuples(index=False, name=None):
        other = against.get(key[0], {}).get(key[-1])
        values = differences(errors.get(key, none), errors.get((*key[:-1], other), none))
        span = interval(values) if len(values) else (np.nan, np.nan)
        found.append((other, len(values), values.mean(), *span))
    return found


def summarised(
    cells: Iterable[Cell],
    rows: pd.DataFrame,
    paper: pd.DataFrame,
    against: Mapping[str, Mapping[str, str]] | None = None,
) -> pd.DataFrame:
    """Return a row per cell: ours, the paper's, the difference.

    Args:
        cells: in their order.
        rows: from `read_cells`.
        paper: from `read_paper`; cells that are not in it have no published number.
        against: by table, which column each is compared with.

    Returns:
        A frame with the columns `CELL`; n, seeds; error_mean, error_std (sample deviation; of one
        run none), bn_error_mean, bn_error_std; diverged, how many runs did; paper_mean, paper_std;
        difference, of the means; against, the column that it is compared with, if it is; paired_n,
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
    frame = frame.join(pd.DataFrame(_compared(frame, rows, against or {}), columns=PAIRED))
    for column in ("n", "diverged"):
        frame[column] = frame[column].fillna(0).astype(int)
    for column in ("executions", "run_ids"):
        frame[column] = [value if isinstance(value, tuple) else () for value in frame[column]]
    return frame
