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
    ordered = table.sort_values("mean_age")
    axes.plot(ordered["mean_age"], ordered["test_error"], color="#cbd5e1", zorder=1)
    axes.scatter(ordered["mean_age"], ordered["test_error"], color=COLOURS[0], zorder=2)
    for row in ordered.itertuples():
        axes.annotate(
            row.average,
            (row.mean_age, row.test_error),
            (4, 5),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("mean age of the averaged weights (epochs)")
    axes.set_ylabel("test error (%) after a BatchNorm pass")
    return picture
