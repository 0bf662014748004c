"""Figure 3: losses half way between a phase's last weights and earlier ones, by the interval."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from phaseavg.phases import Phase
from phaseavg.report.figures.losses import Point, of_first_phase
from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.report.figures.trajectory import Trajectory


def points_of(phase: Phase, steps_per_epoch: int) -> list[Point]:
    """Return the phase's last weights, and ½ (θ_T + θ) for θ ever further back.

    1, 2, 4, … steps within the last epoch, then 1, 2, 4, … epochs and the phase's first epoch.
    """
    last = phase.end * steps_per_epoch
    batches = [2**n for n in range(steps_per_epoch.bit_length()) if 2**n < steps_per_epoch]
    powers = [2**n for n in range(phase.epochs.bit_length()) if 2**n < phase.epochs - 1]
    epochs = sorted({*powers, phase.epochs - 1} - {0})
    backwards = [*batches, *(epoch * steps_per_epoch for epoch in epochs)]
    return [Point(last, last, 1.0), *(Point(last - back, last, 0.5) for back in backwards)]


def numbers(run: Trajectory, path: Path) -> pd.DataFrame:
    """Return the losses at the points, see `of_first_phase`, with a column `interval_epochs`."""
    found = of_first_phase(run, path, points_of)
    found["interval_epochs"] = (found["second"] - found["first"]) / found["steps_per_epoch"]
    return found


def draw(data: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Return training and test loss against the interval; see `numbers`."""
    steps = int(data["steps_per_epoch"].iloc[0])
    end = int(data["second"].iloc[0]) // steps
    halves, alone = data[data["interval_epochs"] > 0], data[data["interval_epochs"] == 0]
    picture = new_picture(8, 5.5)
    upper, lower = picture.subplots(2, 1, sharex=True)
    last = f"$\\theta_{{{end}}}$"
    for axes, kind, colour in ((upper, "train", COLOURS[0]), (lower, "test", COLOURS[1])):
        half = f"½ ({last} + θ)"
        plain(axes).plot(
            halves["interval_epochs"], halves[f"{kind}_loss"], "o-", color=colour, label=half
        )
        for loss in alone[f"{kind}_loss"]:
            axes.axhline(loss, color="black", linestyle="--", linewidth=1, label=f"{last} alone")
        axes.axvline(1, color="black", linestyle=":", linewidth=1)
        axes.set_ylabel(f"{'training' if kind == 'train' else 'test'} loss")
        axes.legend(edgecolor="none", fontsize=9)
    lower.set_xscale("log")
    longest = halves["interval_epochs"].max()
    within = [1 / steps, *(x for x in (0.1,) if x > 2 / steps)]
    ticks = [*within, *(x for x in (1, 10, 100) if x <= longest), longest]
    labels = ["1 batch", *(f"{x:g}" for x in ticks[1:])]
    lower.set_xticks(ticks, labels=labels)
    lower.set_xticks([], minor=True)
    lower.set_xlabel(f"interval between θ and {last} (epochs)")
    return picture, data
