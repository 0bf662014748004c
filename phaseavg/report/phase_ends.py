"""Errors at the ends of phases and wherever a BatchNorm pass was tested, by any setting."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from phaseavg.errors import UserError
from phaseavg.report.statistics import mean_and_deviation, mean_with_interval
from phaseavg.runs.records import load_runs

RECIPE = (
    *("dataset.", "model.", "optimizer.", "schedule.", "averaging."),
    *("batch_size", "batchnorm_batches", "optimizer_state", "numerics_version"),
)
"""What the names of columns begin with that hold a run's recipe, the seed apart."""

PARTS = ("dataset", "model", "optimizer", "averaging")
MADE_WITH = ("device_name", "cpu_capability", "threads", "precision", "torch", "commit")
ERRORS = {
    "weights.error": "as trained",
    "bn.error": "after a BN pass",
    "average.error": "average",
}

GAIN = "average − after a BN pass"


def read_repetitions(folder: Path, by: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the runs in a folder, and the metrics of the finished ones with their settings.

    Args:
        folder: of runs or records.
        by: settings, as columns of `load_runs`, that tell groups of repetitions apart.

    Raises:
        UserError: if no run has finished, there is no such setting, one is named twice, or runs
            that agree in `by` differ in more than the seed, so that a mean would mix recipes.
    """
    runs, metrics = load_runs(folder)
    if runs.empty:
        raise UserError(f"{folder}: holds no finished run; name a folder with runs")
    choices = [name for name in runs if name.startswith(RECIPE) or name in (*PARTS, *MADE_WITH)]
    for name in by:
        if by.count(name) > 1:
            raise UserError(f"{name}: is named twice; name each setting once")
        if name not in choices:
            raise UserError(f"{name}: there is no such setting; choices: {', '.join(choices)}")
    recipe = [name for name in runs if name.startswith(RECIPE) and name not in by]
    for group, members in runs.groupby(list(by), dropna=False):
        differing = [name for name in recipe if members[name].nunique(dropna=False) > 1]
        if differing:
            shown = ", ".join(f"{key}={value}" for key, value in zip(by, group, strict=True))
            raise UserError(
                f"{folder}: the runs with {shown} also differ in {', '.join(differing)}; tell them "
                "apart by these, or keep them in two folders"
            )
    finished = runs[runs["status"] == "finished"]
    if finished.empty:
        raise UserError(f"{folder}: every run in it has diverged")
    return runs, metrics.merge(finished[["path", "seed", *by]], on="path")


def phase_ends(metrics: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the test errors (%) after each epoch with a BatchNorm pass, such as phases' last.

    A row per group of runs and epoch: as trained, after the pass, of the average, what that has
    beyond the pass, seed by seed with its 95 % t interval, and of observers.

    Args:
        metrics: from `read_repetitions`.
        by: settings that tell the groups apart; within one, runs differ in their seed alone.
    """
    tested = metrics[metrics["bn.error"].notna()]
    observers = {
        name: name.split(".")[1]
        for name in sorted(metrics)
        if name.startswith("observers.") and name.endswith(".error") and name.count(".") == 2
    }
    rows = []
    for (*values, phase, epoch), lines in tested.groupby([*by, "phase", "epoch"], dropna=False):
        row = dict(zip(by, values, strict=True))
        last = lines["replaced"].notna().all()
        row |= {"end of": f"phase {phase} (epoch {epoch})" if last else f"epoch {epoch}"}
        row |= {"n": len(lines)}
        for key, label in ERRORS.items():
            row[label] = mean_and_deviation(lines[key].dropna())
        gains = (lines["average.error"] - lines["bn.error"]).dropna().to_numpy()
        row[GAIN] = mean_with_interval(gains)
        row |= {label: mean_and_deviation(lines[key].dropna()) for key, label in observers.items()}
        rows.append(row)
    return pd.DataFrame(rows, dtype=object).fillna("")
