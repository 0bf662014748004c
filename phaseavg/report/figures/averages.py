"""Draw the test errors of averages against the mean age of their weights."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from phaseavg.report.figures.style import COLOURS, new_picture, plain

CORNERS = (
    ((4, 4), "left", "bottom"),
    ((4, -4), "left", "top"),
    ((-4, -4), "right", "top"),
    ((-4, 4), "right", "bottom"),
)
"""Offset (points) and alignment of a label at the four corners of its point."""


def draw(table: pd.DataFrame) -> Figure:
    """Draw the errors of averages.

    Args:
        table: a row per average; columns: average, mean_age (epochs), test_error (%).
    """
    picture = new_picture(8, 4.5)
    axes = plain(picture.subplots())
    names = table["average"].str.partition("=")
    kinds = table.assign(kind=names[0], value=names[2]).groupby("kind", sort=False)
    labels = []
    for number, (kind, rows) in enumerate(kinds):
        drawn = rows.sort_values("mean_age")
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": "os^Dv<>P"[number // len(COLOURS)],
        }
        axes.plot(drawn["mean_age"], drawn["test_error"], label=kind, **style)
        for row in drawn.itertuples():
            place = {"xy": (row.mean_age, row.test_error), "xytext": CORNERS[0][0]}
            text = {"textcoords": "offset points", "fontsize": 8, "color": style["color"]}
            labels.append(axes.annotate(row.value, **place, **text))
    axes.set_xlabel("mean age of the averaged weights (epochs)")
    axes.set_ylabel("test error (%) after a BatchNorm pass")
    axes.legend(frameon=False)
    picture.draw_without_rendering()  # sets the scale of the axes
    arrange(labels)
    return picture


def arrange(labels: list[Annotation]) -> None:
    """Move each label to the first corner of its point that no point or other label covers."""
    points = [label.axes.transData.transform(label.xy) for label in labels]
    covered = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in points]
    for label in labels:
        for offset, side, edge in CORNERS:
            label.set(position=offset, ha=side, va=edge)
            if not any(label.get_window_extent().overlaps(box) for box in covered):
                break
        covered.append(label.get_window_extent())
