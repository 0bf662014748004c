"""What averaging costs beside training: `python -m benchmarks.averaging --output FILE.md`.

The goal: less than 0.5 % of an epoch, the BatchNorm pass not counted. It is judged by the dearest
epoch, the one that ends a phase: what that adds is `observe` and `end_phase`.

A round measures everything once, in the order of a run: a training step, `observe`, `end_phase` and
a batch of a BatchNorm pass. Shares are taken within a round. An epoch is reckoned as its number of
steps times a step, without loading of data, tests and checkpoints, so that shares of the time that
a run takes are smaller still.

Learnt weights keep all weights of a phase, and `observe` costs more from epoch to epoch. It is
measured at a few epochs and interpolated. Their files lie in the system's folder for such (TMPDIR);
read again soon after they were written, they come from the system's cache, as in a run with memory
to spare.
"""

import shutil
import sys
from argparse import Namespace
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.common import (
    cell,
    markdown,
    noise_images,
    parser_of,
    positive,
    repeated,
    report,
    seconds_of,
    settings_of,
)
from phaseavg.averaging import recompute_batchnorm
from phaseavg.config import Settings, build
from phaseavg.data.interface import count_steps
from phaseavg.errors import UserError
from phaseavg.training.execution import pick_device
from phaseavg.training.loop import update
from phaseavg.training.optimizers import new_optimizer
from phaseavg.training.parts import new_averager, new_model
from phaseavg.training.preview import parameters_of
from phaseavg.training.state import TrainingState

NETWORKS = ("cnn13", "resnet34", "densenet121", "wrn28_10")
GOAL = 0.5  # % of an epoch
TRAINING_IMAGES = 50_000  # of CIFAR
WALK = 1e-3  # deviation of the steps between the snapshots that stand for a phase's epochs


class LearntPhase:
    """A phase with learnt weights that can be at any of its epochs without training up to it.

    Its epochs are steps of a random walk. Those are orthogonal but for noise that is small beside
    their length, and RᵀR is taken to be what it would be without that.

    Args:
        settings: of a run with learnt weights.
        model: the first weights.
        epochs: T of the phase.
        device: of the model.
    """

    def __init__(
        self, settings: Settings, model: nn.Module, epochs: int, device: torch.device
    ) -> None:
        schedule = build("schedule", settings.schedule)
        self._model, self._result, self._device = deepcopy(model), deepcopy(model), device
        self._averager = new_averager(
            "averaging", settings.averaging, settings, self._model, schedule.epochs
        )
        self._epochs = epochs
        self.epochs = sorted({1, max(1, epochs // 4), max(1, epochs // 2), epochs})  # measured
        self._snapshots: list[Any] = []
        for _ in range(epochs):
            self._averager.average.start(self._model, epochs)
            self._snapshots += self._averager.average.state_dict()["snapshots"]
            self._walk()
        self._observe(1)  # warms up
        self._end()

    @torch.no_grad()
    def _walk(self) -> None:
        for parameter in self._model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=WALK)

    def _observe(self, t: int) -> float:
        gram = WALK**2 * parameters_of(self._model) * torch.eye(t - 1, dtype=torch.float64)
        state = {"window": self._epochs, "n_averaged": t - 1, "gram": gram}
        self._averager.average.load_state_dict({**state, "snapshots": self._snapshots[:t]})
        return seconds_of(lambda: self._averager.observe(self._model), self._device)

    def _end(self) -> float:
        return seconds_of(lambda: self._averager.end_phase(self._result, 0), self._device)

    def measured(self) -> dict[str, float]:
        """Return the seconds of `observe`, mean over a phase and at its end, and of `end_phase`."""
        found = [self._observe(t) for t in self.epochs]
        every = np.interp(np.arange(1, self._epochs + 1), self.epochs, found)
        return {"observe": every.mean(), "last observe": found[-1], "end": self._end()}


def storage_of(model: nn.Module, epochs: int) -> float:
    """Return the GB that the weights of a phase take, its first ones and some to spare included."""
    return 4e-9 * parameters_of(model) * (epochs + 5)


def learnt_phases(
    name: str, model: nn.Module, folder: Path, arguments: Namespace, device: torch.device
) -> tuple[dict[str, LearntPhase], list[str]]:
    """Return phases whose snapshots are files and in memory, as far as there is room, and notes."""
    phases, notes = {}, []
    size = storage_of(model, arguments.epochs)
    limits = {"files": shutil.disk_usage(folder).free / 1e9, "memory": arguments.memory_limit}
    for store, limit in limits.items():
        if size > limit:
            notes.append(
                f"{name}, learnt weights, {store}: not measured; {size:.2g} GB are needed and "
                f"{limit:.2g} GB allowed."
            )
            continue
        settings = run_settings(
            name,
            arguments,
            "averaging=learnt",
            f"execution.snapshots={store}",
            f"runs_dir={folder}",
        )
        phases[f"learnt, {store}"] = LearntPhase(settings, model, arguments.epochs, device)
    return phases, notes


def run_settings(name: str, arguments: Namespace, *overrides: str) -> Settings:
    """Return the settings of a run of a single phase."""
    return settings_of(
        name,
        arguments.width,
        f"batch_size={arguments.batch_size}",
        f"schedule.epochs=[{arguments.epochs}]",
        "schedule.factors=[1]",
        f"execution.average_device={arguments.average_device}",
        *overrides,
    )


def measure(
    name: str, folder: Path, arguments: Namespace, device: torch.device
) -> tuple[pd.DataFrame, int, list[str]]:
    """Return the seconds of each part of a network's training, its parameters, and notes.

    The seconds have a row for each round.

    Args:
        name: of the network.
        folder: where there may be files meanwhile.
        arguments: of the command line.
        device: of the training.
    """
    settings = run_settings(name, arguments, "averaging=phasewise")
    data = noise_images(arguments.batch_size, device)
    model = new_model(settings, data)
    schedule = build("schedule", settings.schedule)
    averager = new_averager("averaging", settings.averaging, settings, model, schedule.epochs)
    optimizer = new_optimizer(settings, model)
    state = TrainingState(model, optimizer, averager, data.steps_per_epoch, data.train_size)
    images, labels = next(data.train_batches(0, 1))

    def one_round(_: int) -> dict[str, float]:
        parts = {
            "step": lambda: update(state, model, images, labels, settings),
            "exponential: observe": lambda: averager.observe(model),
            "exponential: end": lambda: averager.end_phase(model, 0),
            "BatchNorm batch": lambda: recompute_batchnorm(model, [images]),
        }
        seconds = {part: seconds_of(call, device) for part, call in parts.items()}
        for kind, phase in phases.items():
            seconds |= {f"{kind}: {part}": value for part, value in phase.measured().items()}
        return seconds

    phases: dict[str, LearntPhase] = {}
    notes: list[str] = []
    model.train()
    averager.start_phase(model, 0)
    one_round(-1)  # warms up; and the first epoch of a window is copied, all others averaged
    if name in arguments.learnt_models:
        phases, notes = learnt_phases(name, model, folder, arguments, device)
    seconds = repeated(one_round, arguments.rounds, arguments.seconds)
    return seconds, parameters_of(model), notes


def verdict(shares: pd.Series) -> str:
    """Return whether the goal is met, by shares of an epoch in %: in every round."""
    return "met" if shares.max() < GOAL else "missed"


def training_row(name: str, seconds: pd.DataFrame, epochs: int, weights: int) -> dict[str, Any]:
    """Return a network's row of the table of training and BatchNorm passes."""
    passes = 100 * seconds["BatchNorm batch"] / seconds["step"]
    return {
        "network": name,
        "parameters": f"{weights:,}",
        "rounds": len(seconds),
        "BatchNorm pass (% of an epoch)": cell(passes),
        f"BatchNorm pass (% of a phase of {epochs} epochs)": cell(passes / epochs),
    }


def averaging_rows(
    name: str, seconds: pd.DataFrame, steps: int, epochs: int
) -> list[dict[str, Any]]:
    """Return a network's rows of the table of averaging, one for each kind of weights."""
    epoch = steps * seconds["step"]
    rows = []
    for kind in [column.removesuffix(": end") for column in seconds if column.endswith(": end")]:
        observe, end = seconds[f"{kind}: observe"], seconds[f"{kind}: end"]
        last = seconds.get(f"{kind}: last observe", observe)  # exponential ones are all alike
        dearest = 100 * (last + end) / epoch
        rows.append(
            {
                "network": name,
                "weights": kind,
                "observe (% of an epoch)": cell(100 * observe / epoch),
                "end_phase (% of an epoch)": cell(100 * end / epoch),
                "both, in a phase's last epoch (%)": cell(dearest),
                f"both, in a phase of {epochs} epochs (%)": cell(
                    100 * (epochs * observe + end) / (epochs * epoch)
                ),
                f"goal: last epoch under {GOAL} %": verdict(dearest),
            }
        )
    return rows


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = parser_of(__doc__.partition("\n\n")[0], rounds=20, seconds=60)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS, help="measured")
    parser.add_argument(
        "--learnt-models",
        nargs="*",
        choices=NETWORKS,
        default=["cnn13"],
        help="with learnt weights",
    )
    parser.add_argument("--batch-size", type=positive, default=128, help="images of a step")
    parser.add_argument("--epochs", type=positive, default=80, help="of a phase")
    parser.add_argument("--average-device", default="cpu", help="where the average lives")
    parser.add_argument(
        "--memory-limit", type=float, default=4.0, help="GB for learnt weights' snapshots in memory"
    )
    arguments = parser.parse_args()
    if arguments.rounds >= arguments.epochs:
        parser.error(f"--rounds={arguments.rounds} must be less than --epochs={arguments.epochs}")
    return arguments


def main() -> int:
    """Measure and report."""
    arguments = parsed()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    steps, epochs = count_steps(TRAINING_IMAGES, arguments.batch_size), arguments.epochs
    training: list[dict[str, Any]] = []
    averaging: list[dict[str, Any]] = []
    left_out: list[str] = []
    try:
        device = pick_device(arguments.device, "--device")
        for name in arguments.models:
            print(f"{name} …", file=sys.stderr, flush=True)
            with TemporaryDirectory(prefix="phaseavg-") as folder:
                seconds, weights, notes = measure(name, Path(folder), arguments, device)
            left_out += notes
            training.append(training_row(name, seconds, epochs, weights))
            averaging += averaging_rows(name, seconds, steps, epochs)
    except UserError as error:
        print(f"averaging.py: {error}", file=sys.stderr)
        return 2
    goal = (
        f"Goal: averaging takes under {GOAL} % of an epoch, the BatchNorm pass not counted. It is "
        "`met` if in every round `observe` and `end_phase` together, as in the last epoch of a "
        f"phase, took less; that is so in {sum('met' in row.values() for row in averaging)} of "
        f"{len(averaging)} rows."
    )
    how = (
        "Medians over rounds, in parentheses the least and the most. Width "
        f"{arguments.width:g}; batches of {arguments.batch_size} images of 32×32, 100 classes; an "
        f"epoch is {steps} training steps and a BatchNorm pass as many batches; the average is on "
        f"{arguments.average_device}. Of learnt weights `observe` is the mean over a phase, "
        "interpolated, and that of the last epoch its own."
    )
    tables = [how, markdown(training), goal, markdown(averaging), *left_out]
    report("What averaging costs beside training", device, tables, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
