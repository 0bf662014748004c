"""Errors at the ends of phases, grouped by any setting."""

from collections.abc import Sequence

import pandas as pd

from phaseavg.errors import UserError
from phaseavg.report.records import read_metrics

ERRORS = {
    "test_error": "as trained",
    "bn_test_error": "after a BN pass",
    "average_test_error": "average",
}


def mean_and_deviation(values: pd.Series, sign: str = "") -> str:
    """Return mean ± sample deviation; of a single value the value. `sign` is "+" to show it."""
    return f"{values.mean():{sign}.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def compare(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the test errors (%) at each phase end, a row per group of runs and phase.

    Args:
        runs: from `read_runs`.
        by: columns of `runs` that tell the groups apart; within one, runs count as repetitions.

    Raises:
        UserError: if there is no such column, or a group has a seed twice: it mixes settings.
    """
    for name in by:
        if name not in runs:
            raise UserError(f"{name}: there is no such setting; choices: {', '.join(runs)}")
    finished = runs[runs["status"] == "finished"]
    keys = finished[["run_id", *(name for name in by if name not in ("averaging", "seed"))]]
    ends = read_metrics(finished).merge(keys, on="run_id")
    ends = ends[ends["replaced"].notna()]
    ends = ends.reindex(columns=ends.columns.union(ERRORS))  # no run may have had an average
    rows = []
    for group, lines in ends.groupby([*by, "phase", "epoch"], dropna=False):
        if lines["seed"].duplicated().any():
            differing = [
                name
                for name in runs.columns[runs.columns.get_loc("path") + 1 :]
                if name not in by
                and runs[runs["run_id"].isin(lines["run_id"])][name].nunique(dropna=False) > 1
            ]
            raise UserError(
                f"by={list(by)}: the runs of a group differ in more than the seed; "
                f"add one of: {', '.join(differing)}"
            )
        *names, phase, epoch = group
        row = dict(zip(by, names, strict=True))
        row |= {"end of": f"phase {phase} (epoch {epoch})", "n": len(lines)}
        for key, label in ERRORS.items():
            values = lines[key].dropna()
            row[label] = mean_and_deviation(values) if len(values) else ""
        rows.append(row)
    return pd.DataFrame(rows, dtype=object).fillna("")
