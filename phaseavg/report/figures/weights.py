"""How epochs are weighted: Figure 4, exponential weights, and Figure 5, learnt ones beside them."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pandas as pd

from phaseavg.averaging.weights import Exponential, Weights, coefficients
from phaseavg.config import check
from phaseavg.errors import UserError
from phaseavg.report.figures.drawing import COLOURS, Drawing, blank, new_picture, plain
from phaseavg.report.figures.of_cells import (
    cells_in,
    finished,
    gammas_of,
    lacking,
    networks_in,
    without,
)
from phaseavg.report.study import Study, without_hydra
from phaseavg.sweep.composing import composing
from phaseavg.targets import build

LENGTHS = (10, 20, 40, 80, 160)
"""Epochs of the windows in Figure 4: the paper's phases, a miniature's, the whole training."""

TABLE, LEARNT = "t1a", "learnt"


def fig4(overrides: Sequence[str], conf: Path) -> list[Drawing]:
    """Return the weights of the epochs of a window, for several lengths of it.

    Args:
        overrides: as of train.py, such as `averaging.weights.gamma0=0.95`.
        conf: the folder of the configs.

    Raises:
        UserError: if they are not understood, or the weights follow from the training.
    """
    with composing(conf) as (_, compose):
        asked = without(without_hydra(overrides), "schedule")
        settings = check(compose(["averaging=phasewise", *asked]))
    part = settings.averaging.get("weights")
    if part is None:
        raise UserError(
            f"averaging={settings.averaging['_target_']}: averages nothing; fig4 is of weights, "
            "such as those of averaging=phasewise"
        )
    weights = build("averaging.weights", part, Weights)
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
    shown = ", ".join(f"{key} = {value}" for key, value in part.items() if key != "_target_")
    caption = (
        f"Weights of the epochs in the average{f' ({shown})' if shown else ''} for windows of T "
        "epochs; on the left as they are, on the right by t / T, times T. Computed, not trained."
    )
    return [Drawing("fig4", "Weights of the epochs (Figure 4)", caption, picture, data)]


def fig5(study: Study) -> list[Drawing]:
    """Return of each network the learnt weights of the first phase beside exponential ones."""
    networks = [n for n in networks_in(study, [TABLE]) if _learnt(study, n)]
    title = "Learnt weights of the first phase (Figure 5)"
    if not networks:
        return [blank("fig5", title, f"column {LEARNT} of table {TABLE} is not among the cells")]
    return [_fig5(study, network, title) for network in networks]


def _learnt(study: Study, network: tuple[str, str]) -> list:
    return [c for c in cells_in(study, [TABLE], network) if c.column == LEARNT]


def _fig5(study: Study, network: tuple[str, str], title: str) -> Drawing:
    cells = _learnt(study, network)
    name, title = f"fig5-{'-'.join(network)}", f"{title}: {' '.join(network)}"
    rows, missing = finished(study, cells).sort_values("seed"), lacking(study, cells)
    if rows.empty:
        return blank(name, title, missing)
    ends = study.metrics[(study.metrics["phase"] == 1) & (study.metrics["replaced"] == True)]  # noqa: E712
    weights_of = ends.set_index("run_id")["average.coefficients"]
    learnt = pd.DataFrame({row.seed: weights_of[row.run_id] for row in rows.itertuples()})
    epochs = np.arange(1, len(learnt) + 1)
    picture = new_picture(8, 4.5)
    axes = plain(picture.subplots())
    axes.axhline(0, color="black", linewidth=0.6)
    frames = [
        pd.DataFrame({"weights": LEARNT, "seed": seed, "epoch": epochs, "weight": learnt[seed]})
        for seed in learnt
    ]
    for (column, gamma0), colour in zip(
        gammas_of(study.request.tables[TABLE]).items(), cycle(COLOURS[1:]), strict=False
    ):
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
    caption = (
        f"Weights of the {len(epochs)} epochs of the first phase in its average: learnt, from the "
        "records of each seed, and exponential ones of each γ0, computed."
    )
    return Drawing(name, title, caption, picture, pd.concat(frames, ignore_index=True), missing)
