"""Draw the test errors of averages against the mean age of their weights."""

import pandas as pd
from matplotlib.figure import Figure

from phaseavg.report.figures.style import COLOURS, new_picture, plain


def draw(table: pd.DataFrame) -> Figure:
    """Draw the errors of averages.

    Args:
        table: a row per average; columns: average, mean_age (epochs), test_error (%).
    """
    picture = new_picture(8, 4.5)
    axes = plain(picture.subplots())
    names = table["average"].str.partition("=")
    kinds = table.assign(kind=names[0], value=names[2]).groupby("kind", sort=False)
    for number, (kind, rows) in enumerate(kinds):
        drawn = rows.sort_values("mean_age")
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": "os^Dv<>P"[number // len(COLOURS)],
        }
        axes.plot(drawn["mean_age"], drawn["test_error"], label=kind, **style)
        for row in drawn.itertuples():
            place = (row.mean_age, row.test_error)
            axes.annotate(row.value, place, (4, 5), textcoords="offset points", fontsize=8)
    axes.set_xlabel("mean age of the averaged weights (epochs)")
    axes.set_ylabel("test error (%) after a BatchNorm pass")
    axes.legend(frameon=False)
    return picture
