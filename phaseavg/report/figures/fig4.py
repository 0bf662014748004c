"""Figure 4: the exponential coefficients of the epochs, for windows of several lengths."""

from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure

from phaseavg.averaging.weights import Weights, coefficients
from phaseavg.config import check
from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.sweep.composing import Compose
from phaseavg.targets import build

LENGTHS = (10, 20, 40, 80, 160)
"""The windows' lengths in epochs: the paper's phases, shorter phases, the whole training."""


def draw(compose: Compose) -> tuple[Figure, pd.DataFrame]:
    """Draw the coefficients of `averaging=phasewise`, unscaled and scaled by the window's length.

    Args:
        compose: composes a config.
    """
    settings = check(compose(["averaging=phasewise"]))
    weights = build("averaging.weights", settings.averaging["weights"], Weights)
    data = pd.DataFrame(
        [
            (epochs, t, weight)
            for epochs in LENGTHS
            for t, weight in enumerate(coefficients(weights, epochs, epochs), start=1)
        ],
        columns=["epochs", "epoch", "weight"],
    )
    picture = new_picture(8, 3.8)
    left, right = picture.subplots(1, 2)
    for (epochs, lines), colour in zip(data.groupby("epochs"), cycle(COLOURS), strict=False):
        marked = {"color": colour, "marker": "o", "markersize": 2.5, "linewidth": 1}
        left.plot(lines["epoch"], lines["weight"], label=f"T = {epochs}", **marked)
        right.plot(lines["epoch"] / epochs, lines["weight"] * epochs, **marked)
    plain(left).set(xlabel="epoch t", ylabel="weight α", yscale="log", xscale="log")
    left.set_xticks(ticks := [1, *LENGTHS], labels=[str(tick) for tick in ticks])
    left.minorticks_off()
    left.set_ylim(bottom=1e-5)
    plain(right).set(xlabel="part of the window, t / T", ylabel="T · α")
    picture.legend(loc="outside lower center", ncols=len(LENGTHS), frameon=False)
    return picture, data
