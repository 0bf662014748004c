"""Errors at the ends of phases and wherever a BatchNorm pass was tested, by any setting."""

from collections.abc import Sequence

import pandas as pd

from phaseavg.errors import UserError
from phaseavg.report.records import RECIPE, read_metrics, require_repetitions
from phaseavg.report.statistics import mean_and_deviation, mean_with_interval

PARTS = ("dataset", "model", "optimizer", "averaging")
MADE_WITH = ("device_name", "cpu_capability", "threads", "precision", "torch", "commit")
ERRORS = {
    "test_error": "as trained",
    "bn_test_error": "after a BN pass",
    "average_test_error": "average",
}

GAIN = "average − after a BN pass"


def phase_ends(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the test errors (%) after each epoch with a BatchNorm pass, such as phases' last.

    A row per group of runs and epoch: as trained, after the pass, of the average, what that has
    beyond the pass, seed by seed with its 95 % t interval, and of averages that watched.

    Args:
        runs: from `read_runs`.
        by: settings, as columns of `runs`, that tell the groups apart; within one, runs are
            repetitions with other seeds.

    Raises:
        UserError: if there is no such setting, no run is finished, a setting is named twice, or a
            group mixes recipes.
    """
    choices = [name for name in runs if name.startswith(RECIPE) or name in (*PARTS, *MADE_WITH)]
    for name in by:
        if by.count(name) > 1:
            raise UserError(f"{name}: is named twice; name each setting once")
        if name not in choices:
            raise UserError(f"{name}: there is no such setting; choices: {', '.join(choices)}")
    require_repetitions(runs, by)
    tested = read_metrics(runs, by)
    tested = tested[tested["bn_test_error"].notna()]
    tested = tested.reindex(columns=tested.columns.union(ERRORS))  # there may be no average
    watched = {
        name: name.removesuffix("_test_error")
        for name in tested
        if name.endswith("_test_error") and name not in ERRORS and "without_bn" not in name
    }
    rows = []
    for (*values, phase, epoch), lines in tested.groupby([*by, "phase", "epoch"], dropna=False):
        row = dict(zip(by, values, strict=True))
        last = lines["replaced"].notna().all()
        row |= {"end of": f"phase {phase} (epoch {epoch})" if last else f"epoch {epoch}"}
        row |= {"n": len(lines)}
        for key, label in ERRORS.items():
            row[label] = mean_and_deviation(lines[key].dropna())
        gains = (lines["average_test_error"] - lines["bn_test_error"]).dropna().to_numpy()
        row[GAIN] = mean_with_interval(gains)
        row |= {label: mean_and_deviation(lines[key].dropna()) for key, label in watched.items()}
        rows.append(row)
    return pd.DataFrame(rows, dtype=object).fillna("")
