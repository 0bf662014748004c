"""What averaging costs beside training and beside its peers: `python -m benchmarks.averaging`.

The goal: less than 0.5 % of an epoch, the BatchNorm pass not counted. It is judged by the dearest
epoch, the one that ends a phase: what that adds is `observe` and `end_phase`.

A round measures everything once, in the order of a run: a training step, `observe`, `end_phase` and
a batch of a BatchNorm pass. Shares are taken within a round. An epoch is reckoned as its number of
steps times a step, without loading of data, tests and checkpoints, so that shares of the time that
a run takes are smaller still.

In the same round the exponential average takes in the weights once more, beside others of the same
decay: torch's AveragedModel, timm's ModelEmaV3 and a loop over a dictionary, in an order that turns
from round to round. Before time is taken, all have to come to the same average: ours is debiased,
theirs start as a copy of the first weights, and what these still count in them is taken out.

Learnt weights keep all weights of a phase, and `observe` costs more from epoch to epoch. It is
measured at a few epochs and interpolated. Their files lie in the system's folder for such (TMPDIR);
read again soon after they were written, they come from the system's cache, as in a run with memory
to spare.
"""

import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.averages import COMPARED, OURS, PEERS, WALK, contestants, require_same, walk
from benchmarks.common import (
    Goal,
    add_network,
    add_rounds,
    cell,
    mistaken,
    parser_of,
    positive,
    repeated,
    report,
    seconds_of,
    settings_of,
    turned,
    versions_of,
)
from benchmarks.images import CLASSES, noise_set
from phaseavg.averaging import recompute_batchnorm
from phaseavg.config import Settings
from phaseavg.data.interface import count_steps
from phaseavg.errors import UserError
from phaseavg.targets import build
from phaseavg.training.execution import pick_device
from phaseavg.training.optimizers import new_optimizer
from phaseavg.training.parts import new_averager, new_model
from phaseavg.training.preview import parameters_of
from phaseavg.training.state import TrainingState
from phaseavg.training.step import new_step

NETWORKS = ("cnn13", "resnet34", "densenet121", "wrn28_10")
GOAL = 0.5  # % of an epoch
TRAINING_IMAGES = 50_000  # of CIFAR
NOT_TIMED = 2  # of a window's epochs: its first, which is copied, and one to warm up


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
            walk(self._model)
        self._observe(1)  # warms up
        self._end()

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
            "averaging=rna",
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
    per_class = -(-arguments.batch_size // CLASSES)
    data = noise_set(arguments.batch_size, 0, device, per_class, 1, padding=4, flip=True)
    model = new_model(settings, data)
    schedule = build("schedule", settings.schedule)
    averager = new_averager("averaging", settings.averaging, settings, model, schedule.epochs)
    optimizer = new_optimizer(settings, model)
    state = TrainingState(model, optimizer, averager, data.steps_per_epoch, data.train_size)
    step = new_step(state, data, settings)
    drawn = next(step.draws(0, 1))
    images, _ = next(data.train_batches(0, 1))

    def one_round(number: int) -> dict[str, float]:
        parts = {
            "step": lambda: step(*drawn),
            "exponential: observe": lambda: averager.observe(model),
            "exponential: end": lambda: averager.end_phase(model, 0),
            "BatchNorm batch": lambda: recompute_batchnorm(model, [images]),
        }
        seconds = {part: seconds_of(call, device) for part, call in parts.items()}
        for rival in turned(list(rivals), number):
            observe = partial(rivals[rival].observe, model)
            seconds[f"{rival}: average"] = seconds_of(observe, device)
        for kind, phase in phases.items():
            seconds |= {f"{kind}: {part}": value for part, value in phase.measured().items()}
        return seconds

    phases: dict[str, LearntPhase] = {}
    notes: list[str] = []
    require_same(model, settings, max(arguments.epochs, COMPARED))
    rivals = contestants(model, settings, arguments.epochs)
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


def kinds_of(seconds: pd.DataFrame) -> list[str]:
    """Return the kinds of weights that were measured."""
    return [column.removesuffix(": end") for column in seconds if column.endswith(": end")]


def dearest(seconds: pd.DataFrame, kind: str, steps: int) -> pd.Series:
    """Return what averaging takes (%) of the epoch in which it takes most: a phase's last."""
    # Exponential weights have no observation of its own there: theirs are all alike.
    last = seconds.get(f"{kind}: last observe", seconds[f"{kind}: observe"])
    return 100 * (last + seconds[f"{kind}: end"]) / (steps * seconds["step"])


def averaging_rows(
    name: str, seconds: pd.DataFrame, steps: int, epochs: int
) -> list[dict[str, Any]]:
    """Return a network's rows of the table of averaging, one for each kind of weights."""
    epoch = steps * seconds["step"]
    rows = []
    for kind in kinds_of(seconds):
        observe, end = seconds[f"{kind}: observe"], seconds[f"{kind}: end"]
        both = dearest(seconds, kind, steps)
        rows.append(
            {
                "network": name,
                "weights": kind,
                "observe (% of an epoch)": cell(100 * observe / epoch),
                "end_phase (% of an epoch)": cell(100 * end / epoch),
                "both, in a phase's last epoch (%)": cell(both),
                f"both, in a phase of {epochs} epochs (%)": cell(
                    100 * (epochs * observe + end) / (epochs * epoch)
                ),
                f"goal: last epoch under {GOAL} %": verdict(both),
            }
        )
    return rows


def beside(seconds: pd.DataFrame, peer: str) -> pd.Series:
    """Return the time that ours takes as a multiple of a peer's."""
    return seconds[f"{OURS}: average"] / seconds[f"{peer}: average"]


def peers_row(name: str, seconds: pd.DataFrame) -> dict[str, str]:
    """Return a network's row of the table of exponential averages."""
    ratios = {f"of {peer}": cell(beside(seconds, peer)) for peer in PEERS}
    return {"network": name, "ours (ms)": cell(1e3 * seconds[f"{OURS}: average"]), **ratios}


def goals_of(measured: Mapping[str, pd.DataFrame], steps: int) -> list[Goal]:
    """Return the outcomes: the dearest averaging, and ours beside each peer where it does worst.

    Args:
        measured: seconds by network.
        steps: of an epoch.
    """
    shares = {
        f"{name}, {kind}": dearest(seconds, kind, steps)
        for name, seconds in measured.items()
        for kind in kinds_of(seconds)
    }
    worst = max(shares, key=lambda of: shares[of].median())
    most = max(share.max() for share in shares.values())
    found = [
        Goal(
            f"averaging in a phase's last epoch, dearest of {len(shares)} ({worst})",
            "that epoch, without its BatchNorm pass",
            f"{cell(shares[worst])} %",
            f"under {GOAL} %",
            bool(most < GOAL),
        )
    ]
    for peer in PEERS:
        ratios = {name: beside(seconds, peer) for name, seconds in measured.items()}
        worst = max(ratios, key=lambda name: ratios[name].median())
        what = f"exponential average of an epoch, slowest of {len(ratios)} ({worst})"
        found.append(Goal(what, peer, f"{cell(ratios[worst])} times its time"))
    return found


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = parser_of("averaging")
    add_rounds(parser, rounds=20, seconds=60, each="each network")
    add_network(parser)
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
    if arguments.rounds + NOT_TIMED > arguments.epochs:
        parser.error(
            f"--rounds={arguments.rounds} must be {NOT_TIMED} less than --epochs={arguments.epochs}"
        )
    return arguments


def main() -> int:
    """Measure and report."""
    arguments = parsed()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    steps, epochs = count_steps(TRAINING_IMAGES, arguments.batch_size), arguments.epochs
    training: list[dict[str, Any]] = []
    averaging: list[dict[str, Any]] = []
    measured: dict[str, pd.DataFrame] = {}
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
            measured[name] = seconds
    except UserError as error:
        return mistaken("averaging", error)
    how = (
        f"Width {arguments.width:g}; batches of {arguments.batch_size} images of 32×32, 100 "
        f"classes; an epoch is {steps} training steps and a BatchNorm pass as many batches; the "
        f"average is on {arguments.average_device}. Of learnt weights `observe` is the mean over "
        "a phase, interpolated, and that of the last epoch its own.\n\n"
        "Beside peers: `observe` of the exponential average, and others of the same decay on the "
        f"same weights. Before, all had come to the same average of {COMPARED} epochs, what the "
        "first weights count in the peers' taken out, for ours is debiased."
    )
    how = "\n\n".join([how, *left_out])
    tables = {
        "Training and BatchNorm passes:": training,
        "Averaging:": averaging,
        "Exponential average, as a multiple of a peer's time:": [
            peers_row(name, seconds) for name, seconds in measured.items()
        ],
    }
    goals, packages = goals_of(measured, steps), versions_of("timm")
    report("averaging", arguments.output, device, how, goals, tables, measured, packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
