"""Figure 2: losses along the segments between the weights of five epochs of a phase."""

from itertools import pairwise
from pathlib import Path

from phaseavg.phases import Phase
from phaseavg.report.figures.drawing import COLOURS, Drawing, blank, new_picture, plain
from phaseavg.report.figures.losses import Point, beside_the_record, cost, of_first_phase
from phaseavg.report.figures.trajectories import Trajectory

POINTS = 10
"""Of each segment, its end included and its start not."""


def anchors(phase: Phase) -> list[int]:
    """Return the epochs whose weights are connected: the first of a phase, and its quarters' ends.

    Of 80 epochs 1, 20, 40, 60 and 80, as in the paper.
    """
    quarters = [round(phase.epochs * quarter / 4) for quarter in (1, 2, 3, 4)]
    return [phase.first_epoch + epoch for epoch in sorted({1, *quarters} - {0})]


def points_of(phase: Phase, steps_per_epoch: int) -> list[Point]:
    """Return the points at which losses are measured, along the way."""
    steps = [epoch * steps_per_epoch for epoch in anchors(phase)]
    found = [Point(steps[0], steps[0], 0.0)]
    for first, second in pairwise(steps):
        found += [Point(first, second, n / POINTS) for n in range(1, POINTS + 1)]
    return found


def draw(run: Trajectory, output: Path) -> Drawing:
    """Return Figure 2 of a run's first phase, measuring what is missing of it.

    Args:
        run: as far as it has come; where it is not here, what was measured of it is drawn.
        output: the folder of the figures, which has what was measured.
    """
    phase = run.schedule.phases[0]
    name = f"fig2-{run.name}"
    title = f"Losses on the segments between epochs of phase 1: {run.name}"
    found, missing = of_first_phase(run, points_of, output / f"{name}.csv")
    if found.empty:
        return blank(name, title, missing)
    starts = list(dict.fromkeys(found["first"]))
    found["place"] = [  # from 0 at the first end, 1 at the second one, and so on
        0.0 if row.first == row.second else starts.index(row.first) + row.fraction
        for row in found.itertuples()
    ]
    picture = new_picture(8, 5.5)
    upper, lower = picture.subplots(2, 1, sharex=True)
    for axes, kind, colour in ((upper, "train", COLOURS[0]), (lower, "test", COLOURS[1])):
        plain(axes).plot(found["place"], found[f"{kind}_loss"], color=colour, marker=".")
        ends = found[found["fraction"].isin((0.0, 1.0))]
        axes.plot(ends["place"], ends[f"{kind}_loss"], "o", color=colour, markersize=8)
        axes.set_ylabel(f"{'training' if kind == 'train' else 'test'} loss")
        axes.grid(axis="x", linewidth=0.5)
    epochs = anchors(phase)
    lower.set_xticks(range(len(epochs)), labels=[f"$\\theta_{{{epoch}}}$" for epoch in epochs])
    caption = (
        f"Loss along the segments between the weights of epochs {', '.join(map(str, epochs))}; "
        "BatchNorm statistics are recomputed at every point. "
        f"{cost(found)}.{beside_the_record(found)}"
    )
    return Drawing(name, title, caption, picture, found, missing)
