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


def published(study: Study, network: tuple[str, str], gammas: Mapping[str, float]) -> pd.DataFrame:
    """Return the paper's errors by γ0 for a data set and network.

    Args:
        study: the study with the published cells.
        network: data set and network.
        gammas: γ0 by column.

    Returns:
        Columns: dataset, model, gamma0, test_error, deviation (%, three seeds).
    """
    names = {"error_mean": "test_error", "error_std": "deviation"}
    paper = study.paper.rename(columns=names).reset_index()
    paper = paper[(paper["table"] == TABLE) & _is_network(paper, network)]
    paper = paper.assign(gamma0=paper["column"].map(gammas)).dropna(subset="gamma0")
    paper = paper.sort_values("gamma0")
    return paper[["dataset", "model", "gamma0", *names.values()]]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Draw our errors by γ0, with each seed, and the paper's errors on separate axes.

    If some seeds have runs of all drawn γ0, only these count, so that the means are comparable.

    Args:
        study: a study of Table 1a.
    """
    gammas = study.request.tables[TABLE].gammas
    rows = study.finished
    rows = rows.assign(gamma0=rows["column"].map(gammas)).dropna(subset="gamma0")
    by_network = rows.groupby(["dataset", "model"])["gamma0"]
    by_seed = rows.groupby(["dataset", "model", "seed"])["gamma0"]
    complete = by_seed.transform("nunique") == by_network.transform("nunique")
    some = complete.groupby([rows["dataset"], rows["model"]]).transform("any")
    rows = rows[complete | ~some]
    drawn = [n for n in study.networks if _is_network(rows, n).any()]
    frames = [rows[["dataset", "model", "gamma0", "seed", "test_error"]].assign(whose="ours")]
    papers = {network: published(study, network, gammas) for network in drawn}
    panels = len(drawn) + sum(not paper.empty for paper in papers.values())
    lines = (panels + 1) // 2
    picture = new_picture(4 * min(max(panels, 1), 2), 3.1 * lines + 0.4)
    if not panels:
        return picture, rows
    grid = picture.subplots(lines, min(panels, 2), squeeze=False).flat
    for network in drawn:
        points = rows[_is_network(rows, network)]
        errors = points.groupby("gamma0")["test_error"].agg(["mean", "std"])
        axes = next(grid)
        _curve(axes, errors["mean"], errors["std"], COLOURS[0], list(gammas.values()))
        seeds = {"s": 14, "color": COLOURS[5], "zorder": 3, "label": "a seed"}
        axes.scatter((1 - points["gamma0"]) / OFFSET, points["test_error"], **seeds)
        axes.set_title(f"ours: {' '.join(network)}", fontsize=10, loc="left")
        theirs = papers[network]
        if len(theirs):
            axes = next(grid)
            by_gamma = theirs.set_index("gamma0")
            errors, spread = by_gamma["test_error"], by_gamma["deviation"]
            _curve(axes, errors, spread, COLOURS[1], list(gammas.values()))
            where = " ".join(theirs[CELL[1:3]].iloc[0])
            axes.set_title(f"the paper: {where}", fontsize=10, loc="left")
            frames.append(theirs.assign(whose="the paper's"))
    for axes in grid:
        axes.set_axis_off()
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return picture, pd.concat(frames, ignore_index=True)


def _is_network(rows: pd.DataFrame, network: tuple[str, str]) -> pd.Series:
    return (rows["dataset"] == network[0]) & (rows["model"] == network[1])


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
