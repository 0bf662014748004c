"""Test error against γ0: Table 1a as a picture."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from phaseavg.report.cells import CELL
from phaseavg.report.figures.drawing import COLOURS, Drawing, blank, new_picture, plain
from phaseavg.report.figures.of_cells import (
    cells_in,
    finished,
    gammas_of,
    lacking,
    networks_in,
)
from phaseavg.report.study import Study

TABLE = "1a"
PAPERS = "cifar100"
"""What the paper's Table 1 is about; of other data its curve is for the shape alone."""


def published(study: Study, network: tuple[str, str]) -> pd.DataFrame:
    """Return the paper's errors by column, of a network on its own data set or else CIFAR-100.

    Columns: error_mean, error_std (%); no rows if it has none.
    """
    dataset, model = network
    for data in (dataset, PAPERS):
        key = (TABLE, data, model)
        paper = study.paper[[index[:3] == key for index in study.paper.index]]
        if len(paper):
            return paper.droplevel(CELL[:3])
    return study.paper.iloc[:0].droplevel(CELL[:3])


def draw(study: Study) -> list[Drawing]:
    """Return the errors by γ0: ours with each seed, and the paper's on axes of their own."""
    name, title = "gamma0", "Test error by γ0 (Table 1a)"
    networks = networks_in(study, [TABLE])
    if not networks:
        return [blank(name, title, f"table {TABLE} is not among the cells")]
    gammas = gammas_of(study.request.tables[TABLE])
    cells = [c for n in networks for c in cells_in(study, [TABLE], n) if c.column in gammas]
    rows, missing = finished(study, cells), lacking(study, cells)
    if rows.empty:
        return [blank(name, title, missing)]
    rows = rows.assign(gamma0=rows["column"].map(gammas))
    drawn = [n for n in networks if (rows[CELL[1:3]] == n).all(axis=1).any()]
    frames = [rows[["dataset", "model", "gamma0", "seed", "test_error"]].assign(whose="ours")]
    picture = new_picture(8, 3.1 * len(drawn) + 0.4)
    for network, (left, right) in zip(
        drawn, picture.subplots(len(drawn), 2, squeeze=False), strict=True
    ):
        own = rows[(rows[CELL[1:3]] == network).all(axis=1)]
        errors = own.groupby("gamma0")["test_error"].agg(["mean", "std"])
        _curve(left, errors["mean"], errors["std"], COLOURS[0], "mean ± deviation")
        kept = {"s": 14, "color": "black", "marker": "_", "zorder": 3, "label": "a seed"}
        left.scatter(1 - own["gamma0"], own["test_error"], **kept)
        left.set_title(f"ours: {' '.join(network)}", fontsize=10, loc="left")
        theirs = published(study, network)
        theirs = theirs[theirs.index.isin(gammas)]
        if theirs.empty:
            right.set_axis_off()
            continue
        theirs = theirs.set_axis([gammas[column] for column in theirs.index]).sort_index()
        _curve(right, theirs["error_mean"], theirs["error_std"], COLOURS[1], "mean ± deviation")
        own_data = not study.paper.index.intersection([(TABLE, *network, c) for c in gammas]).empty
        where = network[0] if own_data else PAPERS
        right.set_title(f"the paper: {where} {network[1]}", fontsize=10, loc="left")
        frames.append(
            pd.DataFrame(
                {
                    "dataset": where,
                    "model": network[1],
                    "gamma0": theirs.index,
                    "test_error": theirs["error_mean"].to_numpy(),
                    "deviation": theirs["error_std"].to_numpy(),
                    "whose": "the paper's",
                }
            )
        )
    handles, labels = picture.axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    caption = (
        "Test error (%) at the end of training by γ0, the decay per epoch of an 80-epoch phase: "
        "mean ± sample deviation over the seeds, and each seed. The paper's errors have a scale "
        "of their own."
    )
    return [Drawing(name, title, caption, picture, pd.concat(frames, ignore_index=True), missing)]


def _curve(axes: Axes, mean: pd.Series, deviation: pd.Series, colour: str, label: str) -> None:
    """Draw mean ± deviation (%) against γ0, their index, so that those near 1 lie apart."""
    plain(axes)
    spread = deviation.fillna(0)
    axes.errorbar(1 - mean.index, mean, spread, color=colour, marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.set_xticks(1 - mean.index, labels=[f"{gamma0:g}" for gamma0 in mean.index])
    axes.minorticks_off()
    axes.invert_xaxis()
    low, high = (mean - spread).min(), (mean + spread).max()
    room = max(high - low, 0.1) * 0.15
    axes.set_ylim(np.floor((low - room) * 10) / 10, np.ceil((high + room) * 10) / 10)
    axes.set(xlabel="γ0", ylabel="test error (%)")
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
