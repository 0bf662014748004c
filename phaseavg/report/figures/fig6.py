"""Figure 6: the learning rates of Table 1d's schedules."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from torch import nn

from phaseavg.config import check
from phaseavg.phases import Schedule
from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.sweep.cells import override_key, parse_overrides
from phaseavg.sweep.composing import Compose
from phaseavg.targets import build
from phaseavg.training.optimizers import learning_rate, new_optimizer, set_learning_rate

SCHEDULES = {"80-40-40": "steps, 80-40-40", "decayed": "decayed", "cosine": "cosine"}
"""Options of the config group `schedule`, with labels."""

SHAPES = ("-", "--", "-.")


def draw(overrides: Sequence[str], compose: Compose) -> tuple[Figure, pd.DataFrame]:
    """Draw the optimizer's learning rate in each epoch.

    Args:
        overrides: overrides of train.py, such as `+schedule.divisor=10`; other overrides of the
            schedule are ignored.
        compose: composes a config.

    Raises:
        UserError: if an override is invalid.
    """
    keys = {override.input_line: override_key(override) for override in parse_overrides(overrides)}
    relevant = [o for o, key in keys.items() if key == "schedule.divisor" or "schedule" not in key]
    frames = []
    for option, label in SCHEDULES.items():
        settings = check(compose([f"schedule={option}", *relevant]))
        schedule = build("schedule", settings.schedule, Schedule)
        optimizer = new_optimizer(settings, nn.Linear(1, 1))
        rates = []
        for epoch in range(schedule.total_epochs):
            set_learning_rate(optimizer, schedule.factor(epoch, 1))
            rates.append(learning_rate(optimizer))
        epochs = [float(epoch) for epoch in range(schedule.total_epochs)]
        frames.append(pd.DataFrame({"curve": label, "epoch": epochs, "learning_rate": rates}))
    data = pd.concat(frames, ignore_index=True)
    picture = new_picture()
    axes = plain(picture.subplots())
    curves = data.groupby("curve", sort=False)
    for (label, lines), colour, shape in zip(curves, COLOURS, SHAPES, strict=False):
        # Extend the last learning rate to the end of its epoch.
        epochs = [*lines["epoch"], lines["epoch"].iloc[-1] + 1]
        rates = [*lines["learning_rate"], lines["learning_rate"].iloc[-1]]
        axes.step(epochs, rates, shape, where="post", color=colour, linewidth=1.8, label=label)
    axes.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    axes.set_xlim(0, data["epoch"].max() + 1)
    picture.legend(loc="outside lower center", ncols=3, frameon=False)
    return picture, data
