"""Load the records of many runs as pandas DataFrames, and copy records."""

import shutil
from filecmp import cmpfiles
from pathlib import Path

import pandas as pd

from phaseavg.errors import UserError
from phaseavg.runs.files import write_atomically
from phaseavg.runs.record import FILES, flatten, intact_records

RUNS = [
    *("run_id", "group", "seed", "status", "test_error", "bn_test_error", "epochs", "seconds"),
    *("inherited_epochs", "inherited_seconds", "overrides", "path"),
]
METRICS = [
    *("run_id", "path", "epoch", "phase", "learning_rate", "train.loss", "weights.error"),
    *("bn.error", "average.error", "average.coefficients", "replaced"),
]
"""Columns that the DataFrames always have, even if no run has a value."""


def load_runs(*folders: Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ended runs in folders, and their metrics.

    Damaged records are skipped and reported on stderr. Loading never executes code.

    Args:
        folders: folders of runs or records, or run folders. A run that is in two folders has two
            rows.

    Returns:
        runs: one row per run. Columns: run_id; group, equal for runs that differ only in their
            seed; dataset, model, optimizer, averaging (short names, as in run ids); seed;
            numerics_version, status, test_error, best_test_error, bn_test_error (%; bn: the final
            weights after a BatchNorm pass), epochs, seconds; inherited_epochs and
            inherited_seconds, the share of prefixes trained once for several runs;
            method_seconds (training and averaging), averaging_seconds; device, device_name,
            cpu_capability, threads, processes, precision, torch, commit, modified (` + ` joins the
            values of a run that was resumed elsewhere); overrides, as typed; path, the run folder;
            execution, a description of hardware, precision and torch version; and every config
            value, named by its override key.
        metrics: one row per run and epoch. Columns: run_id, path, and the keys of metrics.jsonl,
            nested keys joined with dots (`weights.error`).
    """
    records = list(intact_records(*folders))
    lines = [
        {"run_id": record.result["run_id"], "path": record.folder, **flatten(line)}
        for record in records
        for line in record.metrics
    ]
    runs = pd.DataFrame([record.row for record in records], columns=None if records else RUNS)
    metrics = pd.DataFrame(lines)
    return runs, metrics.reindex(columns=list(dict.fromkeys([*metrics, *METRICS])))


def copy_records(source: Path, records: Path) -> tuple[int, int]:
    """Copy the records of ended runs; return the numbers of new records and of earlier copies.

    Args:
        source: a folder of runs.
        records: the folder of the study's records.

    Raises:
        UserError: if no run has ended, a record differs from its earlier copy, or a file cannot be
            written.
    """
    ended = {record.result["run_id"]: record.folder for record in intact_records(source)}
    if not ended:
        raise UserError(f"{source}: contains no ended run; choose a folder of runs")
    new = [run_id for run_id in ended if not (records / run_id).exists()]
    for run_id, folder in ended.items():
        copy = records / run_id
        if run_id not in new and cmpfiles(folder, copy, FILES, shallow=False)[0] != [*FILES]:
            raise UserError(f"{folder}: differs from {copy}; nothing was copied; move one away")
    try:
        for run_id in new:
            part = records / f".{run_id}.part"  # renamed once the copy is complete
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name in FILES:
                shutil.copyfile(ended[run_id] / name, part / name)
            part.rename(records / run_id)
    except OSError as error:
        raise UserError(f"--records={records}: cannot be written ({error.strerror})") from error
    return len(new), len(ended) - len(new)


def write_runs(records: Path) -> Path:
    """Write runs.csv next to a folder of records, one line per run; return its path.

    Raises:
        UserError: if the folder contains no record, or the file cannot be written.
    """
    path = records.parent / "runs.csv"
    runs, _ = load_runs(records)
    if runs.empty:
        raise UserError(f"--records={records}: contains no record; choose a folder of records")
    text = runs.drop(columns="path", errors="ignore").to_csv(index=False)
    write_atomically(path, text.encode(), f"--records={records}")
    return path
