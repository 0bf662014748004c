"""Figure 5: learnt and exponential coefficients of the first phase's epochs."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from phaseavg.averaging.weights import Exponential, coefficients
from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.report.study import Study

LEARNT = "learnt"
"""The column of Table 1a with learnt coefficients."""


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Draw the learnt coefficients of each seed, and exponential coefficients for each γ0.

    Args:
        study: a study of Table 1a with one network.
    """
    picture, rows = new_picture(8, 4.5), study.finished
    rows = rows[rows["column"] == LEARNT].sort_values("seed")
    if rows.empty:
        return picture, rows
    first = study.metrics[study.metrics["phase"] == 1]
    weights_of = first[first["replaced"].eq(True)].set_index("run_id")["average.coefficients"]
    learnt = pd.DataFrame({row.seed: weights_of[row.run_id] for row in rows.itertuples()})
    epochs = np.arange(1, len(learnt) + 1)
    axes = plain(picture.subplots())
    axes.axhline(0, color="black", linewidth=0.6)
    frames = [
        pd.DataFrame({"weights": LEARNT, "seed": seed, "epoch": epochs, "weight": learnt[seed]})
        for seed in learnt
    ]
    gammas = study.request.tables["t1a"].gammas
    for (column, gamma0), colour in zip(gammas.items(), cycle(COLOURS[1:]), strict=False):
        weights = coefficients(Exponential(gamma0), len(epochs), len(epochs))
        axes.plot(epochs, weights, color=colour, linewidth=1.3, label=f"γ0 = {gamma0:g}")
        frames.append(pd.DataFrame({"weights": column, "epoch": epochs, "weight": weights}))
    axes.plot(epochs, learnt, color=COLOURS[0], linewidth=0.7, alpha=0.6)
    seeds = f"{learnt.shape[1]} seeds" if learnt.shape[1] > 1 else "1 seed"
    mean = {"color": COLOURS[0], "linewidth": 2.4, "marker": "o", "markersize": 4}
    axes.plot(epochs, learnt.mean(axis=1), **mean, label=f"learnt, mean of {seeds}, and each")
    axes.set(xlabel="epoch of the first phase", ylabel="weight in the average")
    axes.set_xlim(0.5, len(epochs) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    picture.legend(loc="outside lower center", ncols=3, frameon=False)
    return picture, pd.concat(frames, ignore_index=True)
