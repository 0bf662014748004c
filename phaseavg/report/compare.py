"""Compare groups of runs: differing settings, test errors and curves.

A group contains runs that differ only in their seed, or the runs of a table cell. If a run was
repeated with another precision or device, the executions are groups of their own.
"""

import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from phaseavg.errors import UserError
from phaseavg.report.cells import CELL
from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.report.statistics import PAIR_KEYS, differences, mean_with_interval, spread
from phaseavg.report.study import read_study
from phaseavg.report.tables import alphabet, as_markdown
from phaseavg.runs.records import load_runs

ERRORS = {"weights.error": "as trained", "bn.error": "after a BN pass", "average.error": "average"}
"""Test errors (%) of an epoch, by column of `load_runs`."""

MARKERS = {"bn.error": "x", "average.error": "o"}


def read_groups(arguments: Sequence[str]) -> tuple[pd.DataFrame, ...]:
    """Return the ended runs of folders and table cells, and their metrics.

    Args:
        arguments: folders of runs, single run folders, and overrides of `train.py -m` that select
            cells, such as `table=t1b column=80-40-40-sgd,80-40-40-ours`.

    Returns:
        The frames of `load_runs`; runs have two more columns, `letter` and `label` of their group.

    Raises:
        UserError: if a folder or a cell does not exist, or no run has ended.
    """
    overrides = [word for word in arguments if "=" in word and not Path(word).is_dir()]
    folders = [word for word in arguments if word not in overrides]
    for word in folders:
        if not Path(word).is_dir():
            raise UserError(f"{word}: is neither a folder nor an override, such as table=t1a")
    runs, metrics = load_runs(*folders)
    frames = [(runs.assign(label=runs["group"]), metrics)]
    left_out = []
    if overrides:
        study = read_study(overrides)
        rows = study.rows[~study.rows["before_averaging"].astype(bool)]  # the cell's own runs
        labels = [" ".join(key) for key in rows[CELL].itertuples(index=False)]
        named = rows[["run_id"]].assign(label=labels).drop_duplicates()
        cells = named.merge(study.records, on="run_id"), study.metrics
        if named.empty:
            left_out.append(" ".join(overrides))
        # The first group, with which the others are compared, comes from the first argument.
        frames.insert(0 if arguments[0] in overrides else 1, cells)
    filled = [frame for frame in frames if len(frame[0])] or frames  # an empty one lacks columns
    runs, metrics = (pd.concat(part, ignore_index=True) for part in zip(*filled, strict=True))
    if runs.empty:
        raise UserError(f"{' '.join(arguments)}: no run has ended; rerun its command")
    left_out += [w for w in folders if not any(path.is_relative_to(w) for path in runs["path"])]
    for what in left_out:
        print(f"{what}: no run has ended; left out", file=sys.stderr)
    runs = runs.drop_duplicates(["run_id", "label", "execution"]).reset_index(drop=True)
    repeated = runs.loc[runs.duplicated(["run_id", "label"]), "label"]
    by_execution = runs["label"] + ", " + runs["execution"]
    runs["label"] = runs["label"].mask(runs["label"].isin(repeated), by_execution)
    runs["letter"] = runs["label"].map(dict(zip(runs["label"].unique(), alphabet(), strict=False)))
    metrics = metrics.drop_duplicates(["path", "epoch"])
    return runs, runs[["path", "letter", "seed", "execution"]].merge(metrics, on="path")


def list_groups(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the letter, label, and numbers of finished and diverged runs of each group."""
    grouped = runs.groupby("letter", sort=False)
    counts = grouped["status"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=["finished", "diverged"], fill_value=0)
    return grouped["label"].first().to_frame("runs").join(counts).reset_index(names="")


def differing_settings(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the settings that differ between groups: a row per setting, a column per group."""
    first = runs.columns.get_loc("path") + 1  # the columns of a run's config come last
    names = [n for n in runs.columns[first:] if n not in ("letter", "label")]
    grouped = runs[names].map(_setting).groupby(runs["letter"], sort=False)
    values = grouped.agg(lambda texts: ", ".join(dict.fromkeys(texts)))
    return values.loc[:, values.nunique() > 1].T.rename_axis("setting").reset_index()


def _setting(value: Any) -> str:
    """Return a value as text; an integer is a float if the runs of another group lack it."""
    if pd.isna(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _pairs(rows: pd.DataFrame, column: str) -> pd.Series:
    """Return a column, indexed by `PAIR_KEYS`; the first value counts if a key is repeated."""
    values = rows.set_index(PAIR_KEYS)[column].dropna()
    return values[~values.index.duplicated()]


def _mean(values: pd.Series) -> str:
    return spread(values.mean(), values.std())


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Return each group's test errors (%): mean ± sample standard deviation over finished runs.

    The last column is the difference from the first group, paired by seed and execution, with a
    95 % t interval and the number of pairs.
    """
    columns = {"test_error": "last", "best_test_error": "best", "bn_test_error": "after a BN pass"}
    finished = runs[runs["status"] == "finished"]
    groups = dict(list(finished.groupby("letter", sort=False)))
    first = next(iter(groups), "")
    rows = []
    for letter, group in groups.items():
        row = {"": letter, "n": len(group)}
        row |= {label: _mean(group[key]) for key, label in columns.items()}
        row["seconds"] = f"{group['seconds'].mean():,.0f}"
        gains = differences(_pairs(group, "test_error"), _pairs(groups[first], "test_error"))
        counted = f"{mean_with_interval(gains)} ({len(gains)})" if len(gains) else ""
        rows.append(row | {f"last − {first}": "" if letter == first else counted})
    return pd.DataFrame(rows)


def phase_end_errors(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the test errors (%) at phase ends: a row per group and phase end.

    The gain of the average over a BatchNorm pass alone is paired by run. The last two columns
    compare the weights entering the next phase with the first group's weights, as trained and after
    a BatchNorm pass; both are paired by seed and execution.
    """
    ends = metrics[metrics["replaced"].notna()]
    left = ends["average.error"].where(ends["replaced"].astype(bool), ends["weights.error"])
    ends = ends.assign(left=left)
    first = ends["letter"].iloc[0] if len(ends) else ""
    rows = []
    for (letter, phase, epoch), lines in ends.groupby(["letter", "phase", "epoch"], sort=False):
        row = {"": letter, "end of phase": int(phase), "epoch": int(epoch), "n": len(lines)}
        row |= {label: _mean(lines[key]) for key, label in ERRORS.items()}
        gains = (lines["average.error"] - lines["bn.error"]).dropna()
        row["average − BN pass"] = mean_with_interval(gains)
        reference = ends[(ends["letter"] == first) & (ends["epoch"] == epoch)]
        for key, label in (("weights.error", f"− {first}"), ("bn.error", f"− {first} after BN")):
            values = differences(_pairs(lines, "left"), _pairs(reference, key))
            row[label] = "" if letter == first else mean_with_interval(values)
        rows.append(row)
    return pd.DataFrame(rows)


def comparison_text(runs: pd.DataFrame, metrics: pd.DataFrame) -> str:
    """Return the comparison as Markdown."""
    tables = {
        "Runs": list_groups(runs),
        "Settings that differ": differing_settings(runs),
        "Test error (%), mean ± sample deviation over n seeds": summarise(runs),
        "Test error (%) at phase ends": phase_end_errors(metrics),
    }
    parts = [f"{head}:\n\n{as_markdown(t)}\n" for head, t in tables.items() if not t.empty]
    return "\n".join(parts)


def figure(runs: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """Plot test error (%) and training loss over the epochs, and mark the phase ends.

    Runs are thin lines and their group's mean is a thick line. An average that is evaluated inside
    phases is dashed.
    """
    labels = runs.drop_duplicates("letter").set_index("letter")["label"]
    picture = new_picture(8.5, 6.5 + 0.2 * len(labels))
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    ends = metrics[metrics["replaced"].notna()]
    handles = []
    for (letter, label), colour in zip(labels.items(), cycle(COLOURS), strict=False):
        lines = metrics[metrics["letter"] == letter]
        for axes, key, shape in (
            (above, "weights.error", "-"),
            (above, "average.error", "--"),
            (below, "train.loss", "-"),
        ):
            seeds = lines.pivot_table(index="epoch", columns="path", values=key).astype(float)
            if key == "average.error" and len(seeds) <= lines["phase"].nunique():
                continue  # at phase ends alone: a marker
            axes.plot(seeds.index, seeds, shape, color=colour, linewidth=0.6, alpha=0.45)
            mean = seeds.dropna().mean(axis=1)
            axes.plot(mean.index, mean, shape, color=colour, linewidth=2)
        for key, marker in MARKERS.items():
            at = ends[ends["letter"] == letter].groupby("epoch")[key].mean().dropna()
            above.plot(at.index, at, marker, color=colour, markersize=6)
        handles.append(Line2D([], [], color=colour, linewidth=2, label=f"{letter}: {label}"))
    handles += [
        Line2D([], [], color="black", linestyle=shape, marker=marker, label=text)
        for text, shape, marker in (
            ("weights as trained", "-", ""),
            ("average", "--", "o"),
            ("after a BN pass, at phase ends", "", "x"),
        )
    ]
    last = max(metrics["epoch"], default=1)
    tested = metrics["weights.error"].dropna()
    for axes, name in ((above, "test error (%)"), (below, "training loss")):
        for epoch in ends.loc[ends["epoch"] < last, "epoch"].unique():
            axes.axvline(epoch + 0.5, color="black", linestyle=":", linewidth=0.8)
        plain(axes).set_ylabel(name)
    if 0 < 5 * tested.min() < tested.max():  # false for NaN, if there are none
        above.set_yscale("log")
        above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        above.yaxis.set_minor_locator(NullLocator())
        above.yaxis.set_major_formatter("{x:g}")
    below.set(xlabel="epoch", xlim=(0.5, last + 0.5))
    picture.legend(handles=handles, loc="outside lower left", fontsize=8, ncols=2, frameon=False)
    return picture
