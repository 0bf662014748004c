"""Figure 3: losses halfway between a phase's last weights and earlier weights, by interval."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from phaseavg.phases import Phase
from phaseavg.report.figures.losses import Point, first_phase_losses, loss_panels
from phaseavg.report.figures.style import new_picture
from phaseavg.report.figures.trajectory import TrajectoryRun


def choose_points(phase: Phase, steps_per_epoch: int) -> list[Point]:
    """Return the phase's last weights θ_T, and ½ (θ_T + θ) for increasing intervals.

    The intervals are 1, 2, 4, … steps in the last epoch, then 1, 2, 4, … epochs, and finally the
    interval to the phase's first epoch.
    """
    last = phase.end * steps_per_epoch
    batches = [2**n for n in range(steps_per_epoch.bit_length()) if 2**n < steps_per_epoch]
    powers = [2**n for n in range(phase.epochs.bit_length()) if 2**n < phase.epochs - 1]
    epochs = sorted({*powers, phase.epochs - 1} - {0})
    backwards = [*batches, *(epoch * steps_per_epoch for epoch in epochs)]
    return [Point(last, last, 1.0), *(Point(last - back, last, 0.5) for back in backwards)]


def numbers(run: TrajectoryRun, path: Path) -> pd.DataFrame:
    """Return `first_phase_losses` with a column `interval_epochs`."""
    losses = first_phase_losses(run, path, choose_points)
    steps = losses["second"] - losses["first"]
    return losses.assign(interval_epochs=steps / losses["steps_per_epoch"])


def draw(data: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw training and test loss against the interval; see `numbers`."""
    steps = int(data["steps_per_epoch"].iloc[0])
    last = f"$\\theta_{{{int(data['second'].iloc[0]) // steps}}}$"
    halves, alone = data[data["interval_epochs"] > 0], data[data["interval_epochs"] == 0]
    picture = new_picture(8, 5.5)
    for axes, column, colour in loss_panels(picture):
        line = {"color": colour, "label": f"½ ({last} + θ)"}
        axes.plot(halves["interval_epochs"], halves[column], "o-", **line)
        for loss in alone[column]:
            axes.axhline(loss, color="black", linestyle="--", linewidth=1, label=f"{last} alone")
        axes.axvline(1, color="black", linestyle=":", linewidth=1)
        axes.legend(edgecolor="none", fontsize=9)
    axes.set_xscale("log")
    longest = halves["interval_epochs"].max()
    within = [1 / steps, *(x for x in (0.1,) if x > 2 / steps)]
    ticks = [*within, *(x for x in (1, 10, 100) if x <= longest), longest]
    axes.set_xticks(ticks, labels=["1 batch", *(f"{x:g}" for x in ticks[1:])])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"interval between θ and {last} (epochs)")
    return picture, data
