"""Draw test error against γ0, from Table 1a."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phaseavg.report.cells import CELL
from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.report.study import Study

TABLE = "t1a"
OFFSET = 1.12
"""The horizontal offset between seeds and their mean, as a factor on 1 − γ0."""


def published(study: Study, gammas: Mapping[str, float]) -> pd.DataFrame:
    """Return the paper's errors of the study's network by γ0.

    Args:
        study: a study of Table 1a with one network.
        gammas: γ0 by column.

    Returns:
        Columns: dataset, model, gamma0, test_error, deviation (%, three seeds).
    """
    names = {"error_mean": "test_error", "error_std": "deviation"}
    keys = [(TABLE, *study.networks[0], column) for column in gammas]
    paper = study.comparable[study.comparable.index.isin(keys)].rename(columns=names).reset_index()
    paper = paper.assign(gamma0=paper["column"].map(gammas)).sort_values("gamma0")
    return paper[["dataset", "model", "gamma0", *names.values()]]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Draw our errors by γ0, with each seed, and the paper's errors on separate axes.

    With runs of a single γ0, there is nothing to draw.
    If some seeds have runs of all drawn γ0, only these count, so that the means are comparable.

    Args:
        study: a study of Table 1a with one network.
    """
    gammas = study.request.tables[TABLE].gammas
    rows = study.finished
    rows = rows.assign(gamma0=rows["column"].map(gammas)).dropna(subset="gamma0")
    complete = rows.groupby("seed")["gamma0"].transform("nunique") == rows["gamma0"].nunique()
    rows = rows[complete] if complete.any() else rows
    theirs = published(study, gammas)
    picture = new_picture(8 if len(theirs) else 4, 3.5)
    if rows["gamma0"].nunique() < 2:
        return picture, rows.iloc[:0]
    ours, *paper = picture.subplots(1, 2 if len(theirs) else 1, squeeze=False).flat
    errors = rows.groupby("gamma0")["test_error"].agg(["mean", "std"])
    _curve(ours, errors["mean"], errors["std"], COLOURS[0], list(gammas.values()))
    seeds = {"s": 14, "color": COLOURS[5], "zorder": 3, "label": "a seed"}
    ours.scatter((1 - rows["gamma0"]) / OFFSET, rows["test_error"], **seeds)
    ours.set_title(f"ours: {' '.join(study.networks[0])}", fontsize=10, loc="left")
    for axes in paper:
        errors = theirs.set_index("gamma0")
        gamma0s = list(gammas.values())
        _curve(axes, errors["test_error"], errors["deviation"], COLOURS[1], gamma0s)
        axes.set_title("the paper", fontsize=10, loc="left")
    handles, labels = ours.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    numbers = rows[[*CELL[1:3], "gamma0", "seed", "test_error"]].assign(whose="ours")
    if len(theirs):
        numbers = pd.concat([numbers, theirs.assign(whose="the paper's")], ignore_index=True)
    return picture, numbers


def _curve(
    axes: Axes, mean: pd.Series, deviation: pd.Series, colour: str, gammas: Sequence[float]
) -> None:
    """Draw mean ± standard deviation (%) against γ0, their index, on a log scale of 1 − γ0.

    The axis shows all `gammas`, so that panels with missing values stay comparable.
    """
    plain(axes)
    spread = deviation.fillna(0)
    axes.errorbar(
        1 - mean.index, mean, spread, color=colour, marker="o", capsize=3, label="mean ± deviation"
    )
    axes.set_xlim((1 - min(gammas)) * OFFSET**2, (1 - max(gammas)) / OFFSET**2)
    axes.set_xscale("log")
    axes.set_xticks([1 - gamma0 for gamma0 in gammas], labels=[f"{g:g}" for g in gammas])
    axes.minorticks_off()
    low, high = (mean - spread).min(), (mean + spread).max()
    room = max(high - low, 0.1) * 0.15
    axes.set_ylim(np.floor((low - room) * 10) / 10, np.ceil((high + room) * 10) / 10)
    axes.set(xlabel="γ0", ylabel="test error (%)")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
