"""Figure 6: the learning rates of Table 1d's schedules."""

import pandas as pd
from matplotlib.figure import Figure

from phaseavg.config import check
from phaseavg.phases import Schedule
from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.sweep.composing import Compose
from phaseavg.targets import build

SCHEDULES = {"80-40-40": "steps, 80-40-40", "decayed": "decayed", "cosine": "cosine"}
"""Options of the config group `schedule`, with labels."""

SHAPES = ("-", "--", "-.")


def draw(compose: Compose) -> tuple[Figure, pd.DataFrame]:
    """Draw SGD's learning rate in each epoch.

    Args:
        compose: composes a config.
    """
    frames = []
    for option, label in SCHEDULES.items():
        settings = check(compose([f"schedule={option}"]))
        schedule = build("schedule", settings.schedule, Schedule)
        epochs = range(schedule.total_epochs)
        rates = [settings.optimizer["lr"] * schedule.factor(epoch, 1) for epoch in epochs]
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
