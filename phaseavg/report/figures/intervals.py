"""Figure 3: losses half way between a phase's last weights and earlier ones, by the interval."""

from pathlib import Path

from phaseavg.phases import Phase
from phaseavg.report.figures.drawing import COLOURS, Drawing, blank, new_picture, plain
from phaseavg.report.figures.losses import Point, beside_the_record, cost, of_first_phase
from phaseavg.report.figures.trajectories import Trajectory


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


def draw(run: Trajectory, output: Path) -> Drawing:
    """Return Figure 3 of a run's first phase, measuring what is missing of it.

    Args:
        run: as far as it has come; where it is not here, what was measured of it is drawn.
        output: the folder of the figures, which has what was measured.
    """
    phase = run.schedule.phases[0]
    name = f"fig3-{run.name}"
    title = f"Losses of two-point averages at the end of phase 1: {run.name}"
    found, missing = of_first_phase(run, points_of, output / f"{name}.csv")
    if found.empty:
        return blank(name, title, missing)
    steps = found["steps_per_epoch"].iloc[0]
    found["interval_epochs"] = (found["second"] - found["first"]) / steps
    halves, alone = found[found["interval_epochs"] > 0], found[found["interval_epochs"] == 0]
    picture = new_picture(8, 5.5)
    upper, lower = picture.subplots(2, 1, sharex=True)
    last = f"$\\theta_{{{phase.end}}}$"
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
    within = [1 / steps, *(x for x in (0.1,) if x > 2 / steps)]
    ticks = [*within, *(x for x in (1, 10, 100) if x < phase.epochs), phase.epochs - 1]
    labels = ["1 batch", *(f"{x:g}" for x in within[1:]), *(f"{x:g}" for x in ticks[len(within) :])]
    lower.set_xticks(ticks, labels=labels)
    lower.set_xticks([], minor=True)
    lower.set_xlabel(f"interval between θ and {last} (epochs)")
    caption = (
        f"Loss half way between the weights of epoch {phase.end} and earlier ones of the phase, "
        "within its last epoch (left of the dotted line) and at the ends of earlier ones; "
        "BatchNorm statistics are recomputed at every point. "
        f"{cost(found)}.{beside_the_record(found)}"
    )
    return Drawing(name, title, caption, picture, found, missing)
