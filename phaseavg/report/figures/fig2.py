"""Figure 2: losses along the segments between the weights of five epochs of a phase."""

from itertools import pairwise
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from phaseavg.phases import Phase
from phaseavg.report.figures.losses import Point, first_phase_losses, loss_panels
from phaseavg.report.figures.style import new_picture
from phaseavg.report.figures.trajectory import TrajectoryRun

POINTS = 10
"""The number of points per segment, including the end but not the start."""


def anchors(phase: Phase) -> list[int]:
    """Return the end points of the segments: a phase's first epoch and the ends of its quarters.

    With 80 epochs: 1, 20, 40, 60 and 80, as in the paper.
    """
    quarters = [round(phase.epochs * quarter / 4) for quarter in (1, 2, 3, 4)]
    return [phase.first_epoch + epoch for epoch in sorted({1, *quarters} - {0})]


def choose_points(phase: Phase, steps_per_epoch: int) -> list[Point]:
    """Return the points on the segments, in order."""
    steps = [epoch * steps_per_epoch for epoch in anchors(phase)]
    fractions = [n / POINTS for n in range(1, POINTS + 1)]
    between = [Point(*ends, fraction) for ends in pairwise(steps) for fraction in fractions]
    return [Point(steps[0], steps[0], 0.0), *between]


def numbers(run: TrajectoryRun, path: Path) -> pd.DataFrame:
    """Return the losses at the points; see `first_phase_losses`.

    A column `place` is 0 at the first anchor, 1 at the second, and so on.
    """
    losses = first_phase_losses(run, path, choose_points)
    segment = pd.factorize(losses["first"])[0] + losses["fraction"]
    return losses.assign(place=segment.where(losses["first"] != losses["second"], 0.0))


def draw(data: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw training and test loss along the segments; see `numbers`."""
    picture = new_picture(8, 5.5)
    ends = data[data["fraction"].isin((0.0, 1.0))]
    for axes, column, colour in loss_panels(picture):
        axes.plot(data["place"], data[column], color=colour, marker=".")
        axes.plot(ends["place"], ends[column], "o", color=colour, markersize=8)
        axes.grid(axis="x", linewidth=0.5)
    epochs = ends["second"] // ends["steps_per_epoch"]
    axes.set_xticks(ends["place"], labels=[f"$\\theta_{{{epoch}}}$" for epoch in epochs])
    return picture, data
