"""Draw learning-rate schedules: `schedule.py schedule=80-40-40 schedule=decayed schedule=cosine`.

Each argument is a curve: overrides as of train.py, several of them in quotes, such as
`"schedule=cosine schedule.shape.per=step"` or `"schedule=80-40-40 optimizer=adam"`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from matplotlib.figure import Figure
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from phaseavg.cli import as_option, explained
from phaseavg.config import build, check
from phaseavg.errors import UserError
from phaseavg.phases import Schedule
from phaseavg.training.optimizers import learning_rate, new_optimizer, set_learning_rate

CONF = Path(__file__).parents[1] / "conf"


def rates(overrides: str, steps_per_epoch: int) -> tuple[list[float], list[float]]:
    """Return the epochs done before each step of a schedule, and the step's learning rate.

    Raises:
        UserError: if the overrides are not understood.
    """
    typed = [as_option(override, CONF) for override in overrides.split()]
    try:
        settings = check(compose("config", typed))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explained(error)) from error
    schedule = build("schedule", settings.schedule, Schedule)
    optimizer = new_optimizer(settings, nn.Linear(1, 1))
    found = []
    steps = range(schedule.total_epochs * steps_per_epoch)
    for step in steps:
        set_learning_rate(optimizer, schedule.factor(step, steps_per_epoch))
        found.append(learning_rate(optimizer))
    return [step / steps_per_epoch for step in steps], found


def figure(curves: Sequence[str], steps_per_epoch: int) -> Figure:
    """Return learning rate against epochs, a curve for each of the overrides."""
    picture = Figure(figsize=(8, 4.5), layout="constrained")
    axes = picture.subplots()
    for overrides in curves:
        epochs, found = rates(overrides, steps_per_epoch)
        axes.plot(epochs, found, drawstyle="steps-post", label=overrides.replace("schedule=", ""))
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.set_xlim(left=0)
    axes.legend(edgecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def main() -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("curves", nargs="+", metavar="OVERRIDES", help="a curve, as of train.py")
    parser.add_argument("--output", type=Path, default=Path("schedule.png"), help="png, svg, pdf")
    parser.add_argument("--steps", type=int, default=391, help="steps of an epoch (CIFAR's 391)")
    arguments = parser.parse_args()
    try:
        if arguments.steps < 1:
            raise UserError(f"--steps={arguments.steps}: must be positive")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            picture = figure(arguments.curves, arguments.steps)
        picture.savefig(arguments.output, dpi=150)
    except UserError as error:
        print(f"schedule.py: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"schedule.py: --output={arguments.output}: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.output}: {len(arguments.curves)} curves")
    return 0


if __name__ == "__main__":
    sys.exit(main())
