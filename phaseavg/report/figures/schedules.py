"""Learning rates against epochs, among them Figure 6."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from phaseavg.config import check
from phaseavg.errors import UserError
from phaseavg.phases import Schedule
from phaseavg.report.figures.drawing import COLOURS, Drawing, new_picture, plain
from phaseavg.report.figures.of_cells import without
from phaseavg.report.study import without_hydra
from phaseavg.sweep.composing import Compose, composing
from phaseavg.targets import build
from phaseavg.training.optimizers import learning_rate, new_optimizer, set_learning_rate

FIGURE_6 = {
    "80-40-40": "steps, 80-40-40",
    "decayed": "decayed",
    "cosine": "cosine",
}
"""Options of the config group `schedule`, and how they are called."""

MOST_STEPS = 2_000_000
"""Of a curve; the longest schedule of ImageNet's has 600,600."""

SHAPES = ("-", "--", "-.", ":")


def rates(
    overrides: Sequence[str], steps_per_epoch: int, compose: Compose
) -> tuple[list[float], list[float]]:
    """Return the epochs done before each step of a schedule, and the step's learning rate.

    Args:
        overrides: as of train.py.
        steps_per_epoch: how many updates an epoch has.
        compose: to compose a run's config.

    Raises:
        UserError: if a value is none that its setting takes, or there are too many steps.
    """
    settings = check(compose(overrides))
    schedule = build("schedule", settings.schedule, Schedule)
    optimizer = new_optimizer(settings, nn.Linear(1, 1))
    found = []
    total = schedule.total_epochs * steps_per_epoch
    if total > MOST_STEPS:
        raise UserError(
            f"--steps={steps_per_epoch}: makes {total:,} steps in {schedule.total_epochs:,} "
            f"epochs; a curve has at most {MOST_STEPS:,}"
        )
    steps = range(total)
    for step in steps:
        set_learning_rate(optimizer, schedule.factor(step, steps_per_epoch))
        found.append(learning_rate(optimizer))
    return [step / steps_per_epoch for step in steps], found


def schedules(curves: Sequence[str], steps_per_epoch: int, conf: Path) -> pd.DataFrame:
    """Return the learning rates of some curves, a row per curve and step.

    Args:
        curves: overrides of each, as of train.py, with blanks between them.
        steps_per_epoch: how many updates an epoch has.
        conf: the folder of the configs.

    Returns:
        Columns: curve; epoch, done before the step, with fractions; learning_rate.

    Raises:
        UserError: if overrides are not understood.
    """
    with composing(conf) as (_, compose):
        asked = {curve: without_hydra(curve.split()) for curve in curves}
        return _rates_of(asked, steps_per_epoch, compose)


def _rates_of(
    curves: Mapping[str, Sequence[str]], steps_per_epoch: int, compose: Compose
) -> pd.DataFrame:
    """Return what `schedules` does, of overrides by what their curves are to be called."""
    frames = []
    for curve, overrides in curves.items():
        epochs, found = rates(overrides, steps_per_epoch, compose)
        frames.append(pd.DataFrame({"curve": curve, "epoch": epochs, "learning_rate": found}))
    return pd.concat(frames, ignore_index=True)


def figure(found: pd.DataFrame) -> Figure:
    """Return learning rate against epochs, a line for each curve.

    Args:
        found: from `schedules`; the curves as they are to be called.
    """
    picture = new_picture()
    axes = plain(picture.subplots())
    for number, (curve, lines) in enumerate(found.groupby("curve", sort=False)):
        step = lines["epoch"].diff().iloc[-1]  # the last rate holds until the end
        axes.step(
            [*lines["epoch"], lines["epoch"].iloc[-1] + step],
            [*lines["learning_rate"], lines["learning_rate"].iloc[-1]],
            SHAPES[number % len(SHAPES)],
            where="post",
            color=COLOURS[number % len(COLOURS)],
            linewidth=1.8,
            label=curve,
        )
    axes.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    axes.set_xlim(0, found["epoch"].max() + step)
    picture.legend(loc="outside lower center", ncols=3, frameon=False)
    return picture


def fig6(overrides: Sequence[str], conf: Path) -> list[Drawing]:
    """Return the learning rates of Table 1d's schedules.

    Args:
        overrides: as of train.py, that hold for all of them, such as `+schedule.divisor=10`. What
            makes the schedules is the figure's own: others are left out, as are choices of cells.
        conf: the folder of the configs.

    Raises:
        UserError: if they are not understood.
    """
    with composing(conf) as (_, compose):
        asked = without(without_hydra(overrides), "schedule", "schedule.divisor")
        curves = {name: [f"schedule={option}", *asked] for option, name in FIGURE_6.items()}
        data = _rates_of(curves, 1, compose)
    caption = (
        "Learning rate, epoch by epoch, as the optimizer has it: constant within the phases, "
        "decayed within each as averaging amounts to (Section 3.1), and half a cosine. Computed, "
        "not trained."
    )
    title = "Schedules of the learning rate (Figure 6)"
    return [Drawing("fig6", title, caption, figure(data), data)]
