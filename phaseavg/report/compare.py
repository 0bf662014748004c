"""Errors at the ends of phases, grouped by any setting."""

from collections.abc import Sequence

import pandas as pd

from phaseavg.errors import UserError
from phaseavg.report.claims import interval
from phaseavg.report.records import RECIPE, read_metrics, require_repetitions
from phaseavg.report.tables import with_interval

PARTS = ("dataset", "model", "optimizer", "averaging")
MADE_WITH = ("device_name", "cpu_capability", "threads", "precision", "torch", "commit")
ERRORS = {
    "test_error": "as trained",
    "bn_test_error": "after a BN pass",
    "average_test_error": "average",
}

GAIN = "average − after a BN pass"


def mean_and_deviation(values: pd.Series, sign: str = "") -> str:
    """Return mean ± sample deviation; of a single value the value. `sign` is "+" to show it."""
    return f"{values.mean():{sign}.2f}" + (f" ± {values.std():.2f}" if len(values) > 1 else "")


def compare(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the test errors (%) at each phase end, a row per group of runs and phase.

    Last comes what the average has beyond a BatchNorm pass, seed by seed, with its 95 % t interval.

    Args:
        runs: from `read_runs`.
        by: settings, as columns of `runs`, that tell the groups apart; within one, runs are
            repetitions with other seeds.

    Raises:
        UserError: if there is no such setting, no run is finished, or a group mixes recipes.
    """
    choices = [name for name in runs if name.startswith(RECIPE) or name in (*PARTS, *MADE_WITH)]
    for name in by:
        if name not in choices:
            raise UserError(f"{name}: there is no such setting; choices: {', '.join(choices)}")
    require_repetitions(runs, by)
    ends = read_metrics(runs, by)
    ends = ends[ends["replaced"].notna()]
    ends = ends.reindex(columns=ends.columns.union(ERRORS))  # no run may have had an average
    rows = []
    for (*values, phase, epoch), lines in ends.groupby([*by, "phase", "epoch"], dropna=False):
        row = dict(zip(by, values, strict=True))
        row |= {"end of": f"phase {phase} (epoch {epoch})", "n": len(lines)}
        for key, label in ERRORS.items():
            errors = lines[key].dropna()
            row[label] = mean_and_deviation(errors) if len(errors) else ""
        gains = (lines["average_test_error"] - lines["bn_test_error"]).dropna().to_numpy()
        row[GAIN] = with_interval(gains.mean(), *interval(gains)) if len(gains) else ""
        rows.append(row)
    return pd.DataFrame(rows, dtype=object).fillna("")
