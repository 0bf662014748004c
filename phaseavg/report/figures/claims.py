"""Draw the paired differences behind the claims: each seed, mean, interval, the paper's value."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from phaseavg.report.claims import NETWORK, differences_in, evidence
from phaseavg.report.figures.style import COLOURS, new_picture
from phaseavg.report.paper_claims import CLAIMS
from phaseavg.report.statistics import interval, verdict
from phaseavg.report.study import Study

OF_VERDICT = {"holds": COLOURS[0], "does not hold": COLOURS[1], "open": "#6b7280"}
ROW_INCHES = 0.26
LINEAR = 1.0
"""The limit (%) of the linear part of the axis; larger differences are on a log scale."""
TICKS = [0.5, 1, 2, 5, 20, 100]
FINE_TICKS = [0.1, 0.2, 0.5]
"""The ticks if all differences are below `LINEAR`."""


def effects(study: Study) -> pd.DataFrame:
    """Return a row for each difference of errors with two seeds or more.

    C1 is left out because its margin is measured.

    Returns:
        Columns: claim, name and text; margin; pair, the label of the comparison; dataset, model;
        values, one per seed; paper, the published difference (NaN if not comparable).
    """
    effect_rows = []
    for claim in (claim for claim in CLAIMS if claim.margin is not None and not claim.is_cost):
        published = differences_in(claim, study.comparable)
        pairs = [*claim.pairs, *claim.uncounted]
        for key, line in evidence(claim, study.rows, study.keys, pairs).differences.iterrows():
            label, *network = key
            values = line.dropna().to_numpy(float)
            if len(values) > 1:
                row = [f"{claim.name}: {claim.text}", claim.margin, label, *network, values]
                effect_rows.append([*row, published.get(key, np.nan)])
    columns = ["claim", "margin", "pair", *NETWORK, "values", "paper"]
    return pd.DataFrame(effect_rows, columns=columns)


def figure(data: pd.DataFrame, title: str) -> Figure:
    """Draw a line per difference, grouped by claim.

    Args:
        data: from `effects`.
        title: the title of the figure.
    """
    networks = data[NETWORK].drop_duplicates()
    single = len(networks) == 1
    heads = data["claim"].drop_duplicates()
    height = ROW_INCHES * (len(data) + 1.5 * len(heads)) + 1.2
    picture = new_picture(8.5, height)
    axes = picture.subplots()
    from_left = blended_transform_factory(picture.transFigure, axes.transData)
    ends = [end for values in data["values"] for end in interval(values)]
    reach = max(np.abs([*ends, *data["paper"].dropna()]).max(), 0.1)
    y, places, labels = 0.0, [], []
    for claim, lines in data.groupby("claim", sort=False):
        axes.text(0.01, y, claim, transform=from_left, weight="bold", fontsize=8.5, va="center")
        for _, line in lines.iterrows():
            y += 1
            low, high = interval(line["values"])
            colour = OF_VERDICT[verdict(line["values"], line["margin"])]
            axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(line["values"].mean(), y, "o", color=colour, markersize=7)
            axes.plot(line["values"], [y] * len(line["values"]), "|", color="black", markersize=9)
            if not np.isnan(line["paper"]):
                axes.plot(line["paper"], y, "D", color="black", markersize=6, fillstyle="none")
            places.append(y)
            labels.append(line["pair"] + ("" if single else f", {line['dataset']} {line['model']}"))
        margin = lines["margin"].iloc[0]
        axes.plot([margin, margin], [y - len(lines) + 0.4, y + 0.5], color="black", linewidth=0.8)
        y += 1.5
    axes.set_yticks(places, labels=labels, fontsize=9)
    axes.set_ylim(y - 0.7, -0.8)
    axes.set_xscale("symlog", linthresh=LINEAR)  # keeps small differences visible
    ticks_x = [x for x in (TICKS if reach > LINEAR else FINE_TICKS) if x <= 1.1 * reach]
    axes.set_xticks(signed := [*(-x for x in reversed(ticks_x)), 0, *ticks_x])
    axes.set_xticklabels([f"{x:+g}".replace("-", "−") if x else "0" for x in signed], fontsize=8)
    axes.set_xlim(-1.15 * reach, 1.15 * reach)
    axes.set_xlabel("difference of test errors (%); left of the line speaks for the claim")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        Line2D([], [], color=colour, linewidth=2, marker="o", markersize=7, label=word)
        for colour, word in zip(OF_VERDICT.values(), ("for it", "against it", "open"), strict=True)
    ]
    handles.append(Line2D([], [], color="black", marker="|", linewidth=0, label="a seed"))
    if data["paper"].notna().any():
        marker = {"marker": "D", "fillstyle": "none", "linewidth": 0}
        handles.append(Line2D([], [], color="black", label="the paper", **marker))
    picture.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    shown = [title, " ".join(networks.iloc[0]) if single else ""]
    axes.set_title(": ".join(filter(None, shown)), loc="left", fontsize=10)
    return picture


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Draw the differences, coloured by the position of their interval relative to the margin.

    Returns:
        The figure and its numbers, a row per seed; both empty if no pair has two seeds.
    """
    data = effects(study)
    picture = new_picture() if data.empty else figure(data, study.remark)
    return picture, data.explode("values").rename(columns={"values": "difference"})
