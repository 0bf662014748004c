"""What averaging costs beside training and beside its peers: `python -m benchmarks.averaging`.

Beside training: a round measures once a training step, `epoch_end` inside a phase and at its end,
and a batch of a BatchNorm pass; shares are taken within a round. An epoch is reckoned as its number
of steps times a step, so that shares of a run, which also loads data and tests, are smaller still.
RNA stores the weights of every epoch and `epoch_end` costs more from one to the next: a whole phase
is measured once. The goal, under 0.5 % of an epoch, is judged by a phase's last epoch in the
dearest round, the BatchNorm pass not counted.

Beside peers: networks of nothing but parameters, many or few, take a random step, and each average
takes in their weights, in an order that turns from round to round. All have the same decay. Before
time is taken they have to agree on the average: ours is debiased, the peers' start as a copy of the
first weights, and what these still count in them is taken out.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
from phaseavg.averaging import RNA, Averager, Exponential, Phasewise, recompute_batchnorm
from phaseavg.data.interface import count_steps
from phaseavg.errors import UserError
from phaseavg.training.execution import pick_device
from phaseavg.training.optimizers import new_optimizer
from phaseavg.training.parts import new_model
from phaseavg.training.preview import parameters_of
from phaseavg.training.state import TrainingState
from phaseavg.training.step import new_step

NETWORKS = ("cnn13", "resnet34", "densenet121", "wrn28_10")
GOAL = 0.5  # % of an epoch
TRAINING_IMAGES = 50_000  # of CIFAR
SIZES = {
    "25 M in 800 tensors": (25_000_000, 800),
    "25 M in 20 tensors": (25_000_000, 20),
    "100 M in 800 tensors": (100_000_000, 800),
    "100 M in 20 tensors": (100_000_000, 20),
}
OURS = "ours"
DECAY, EPOCHS = 0.9, 80  # γ0 and T, so that γ = γ0
COMPARED = 5  # epochs after which all have to have the same average
WALK = 1e-3  # deviation of the steps between the weights that stand for a phase's epochs


@torch.no_grad()
def walk(model: nn.Module) -> None:
    """Take the weights a step further, as an epoch would."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=WALK)


@dataclass
class Contestant:
    """An exponential average.

    Attributes:
        update: takes in the weights of a model.
        weights: returns the parameters of the average, in the model's order.
    """

    update: Callable[[nn.Module], object]
    weights: Callable[[], Iterable[Tensor]]


def ours(model: nn.Module) -> Contestant:
    """Return the phase-wise average."""
    averager = Phasewise(model, [EPOCHS], Exponential(DECAY))
    return Contestant(averager.epoch_end, lambda: averager.average.tensors)


def of_torch(model: nn.Module) -> Contestant:
    """Return torch's AveragedModel, in the fastest way that it has."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    return Contestant(average.update_parameters, average.module.parameters)


def of_timm(model: nn.Module) -> Contestant:
    """Return timm's ModelEmaV3."""
    average = ModelEmaV3(model, decay=DECAY)
    return Contestant(average.update, average.module.parameters)


def of_ema_pytorch(model: nn.Module) -> Contestant:
    """Return ema-pytorch's EMA, updated at every call from the first."""
    from ema_pytorch import EMA

    average = EMA(model, beta=DECAY, update_after_step=-1, update_every=1, inv_gamma=1, power=1e9)

    def update(model: nn.Module) -> None:
        average.update()

    return Contestant(update, average.ema_model.parameters)


def of_lightning(model: nn.Module) -> Contestant:
    """Return the average of Lightning's EMAWeightAveraging, made as the callback makes it."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    callback = EMAWeightAveraging(decay=DECAY)
    average = AveragedModel(model, use_buffers=callback._use_buffers, **callback._kwargs)
    return Contestant(average.update_parameters, average.module.parameters)


PEERS = {
    "torch AveragedModel": ("torch", of_torch),
    "timm ModelEmaV3": ("timm", of_timm),
    "ema-pytorch EMA": ("ema-pytorch", of_ema_pytorch),
    "Lightning EMAWeightAveraging": ("lightning", of_lightning),
}
"""Each with the package that it is of."""


def installed() -> dict[str, str]:
    """Return the versions of the peers' packages; of those that are not there, nothing."""
    found = {}
    for package, _ in PEERS.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def contestants(model: nn.Module) -> dict[str, Contestant]:
    """Return ours and its peers, which have taken in the weights of a model as their first."""
    packages = installed()
    makers = {name: make for name, (package, make) in PEERS.items() if package in packages}
    found = {name: make(model) for name, make in {OURS: ours, **makers}.items()}
    for contestant in found.values():
        contestant.update(model)
    return found


@torch.no_grad()
def require_same(model: nn.Module) -> None:
    """Check that all come to the same average of a few epochs; the model walks on.

    A peer's e_t = γ^t θ_1 + (1 − γ) Σ γ^(t−s) θ_s has the first weights θ_1 in it once more than
    the debiased average θ̄_t, so that θ̄_t − θ_1 = (e_t − θ_1) / (1 − γ^t).

    Raises:
        AssertionError: if they do not.
    """
    found = contestants(model)
    first = [parameter.clone() for parameter in model.parameters()]
    for _ in range(COMPARED - 1):
        walk(model)
        for contestant in found.values():
            contestant.update(model)
    left = DECAY**COMPARED
    expected = [a - b for a, b in zip(found.pop(OURS).weights(), first, strict=True)]
    for contestant in found.values():
        for average, begun, own in zip(contestant.weights(), first, expected, strict=True):
            gone = (average - begun) / (1 - left)
            torch.testing.assert_close(gone, own, rtol=1e-3, atol=1e-5)


def of_parameters(count: int, tensors: int) -> nn.Module:
    """Return a network of nothing but parameters, `count` numbers in `tensors` tensors."""
    return nn.ParameterList([torch.randn(count // tensors) for _ in range(tensors)])


def beside_peers(arguments: Namespace) -> dict[str, pd.DataFrame]:
    """Return the seconds of each average, a row per round, by the size of the network."""
    require_same(of_parameters(1000, 10))
    measured = {}
    for size, (count, tensors) in SIZES.items():
        print(f"{size} …", file=sys.stderr, flush=True)
        model = of_parameters(int(count * arguments.scale), tensors)
        found = contestants(model)

        def one_round(
            number: int, model: nn.Module = model, found: dict[str, Contestant] = found
        ) -> dict[str, float]:
            order = turned(list(found), number)
            calls = {name: partial(found[name].update, model) for name in order}
            return {name: seconds_of(call, torch.device("cpu")) for name, call in calls.items()}

        one_round(0)  # warms up
        measured[size] = repeated(one_round, arguments.rounds, arguments.seconds)
    return measured


def beside_training(
    name: str, arguments: Namespace, device: torch.device
) -> tuple[pd.DataFrame, int]:
    """Return the seconds of each part of a network's training, a row per round; its parameters."""
    batch = f"batch_size={arguments.batch_size}"
    settings = settings_of(name, arguments.width, "averaging=none", batch)
    per_class = -(-arguments.batch_size // CLASSES)
    data = noise_set(arguments.batch_size, 0, device, per_class, 1, padding=4, flip=True)
    model = new_model(settings, data)
    optimizer = new_optimizer(settings, model)
    averager = Averager(model, [1])
    state = TrainingState(model, optimizer, averager, data.steps_per_epoch, data.train_size)
    step = new_step(state, data, settings)
    drawn = next(step.draws(0, 1))
    images, _ = next(data.train_batches(0, 1))
    model.train()

    def one_round(number: int) -> dict[str, float]:
        averager = Phasewise(model, [3])
        averager.epoch_end(model)  # the first epoch of a phase is copied, all others averaged
        parts = {
            "step": lambda: step(*drawn),
            "exponential": lambda: averager.epoch_end(model),
            "exponential, at a phase's end": lambda: averager.epoch_end(model),
            "BatchNorm batch": lambda: recompute_batchnorm(model, [images]),
        }
        return {part: seconds_of(call, device) for part, call in parts.items()}

    one_round(-1)  # warms up
    seconds = repeated(one_round, arguments.rounds, arguments.seconds)
    if name in arguments.rna_models:
        with TemporaryDirectory(prefix="phaseavg-") as folder:
            *inside, last = rna_phase(model, Path(folder), arguments.epochs, device)
        seconds["RNA"], seconds["RNA, at a phase's end"] = sum(inside) / len(inside), last
    return seconds, parameters_of(model)


def rna_phase(model: nn.Module, folder: Path, epochs: int, device: torch.device) -> list[float]:
    """Return the seconds of `epoch_end` with RNA in each epoch of a phase, its first left out."""
    averager = Phasewise(model, [epochs], RNA(folder))
    seconds = []
    for _ in range(epochs):
        walk(model)
        seconds.append(seconds_of(partial(averager.epoch_end, model), device))
    return seconds[1:]


def training_rows(name: str, seconds: pd.DataFrame, steps: int) -> list[dict[str, Any]]:
    """Return a network's rows of the table beside training, one per kind of weights."""
    epoch = steps * seconds["step"]
    kinds = [column for column in ("exponential", "RNA") if column in seconds]
    return [
        {
            "network": name,
            "weights": kind,
            "inside a phase (% of an epoch)": cell(100 * seconds[kind] / epoch),
            "at its end (% of an epoch)": cell(100 * seconds[f"{kind}, at a phase's end"] / epoch),
            "BatchNorm pass (% of an epoch)": cell(
                100 * seconds["BatchNorm batch"] / seconds["step"]
            ),
        }
        for kind in kinds
    ]


def peers_row(size: str, seconds: pd.DataFrame) -> dict[str, str]:
    """Return the row of a network's size: ours, and its time as a multiple of each peer's."""
    ratios = {f"of {p}": cell(seconds[OURS] / seconds[p]) for p in PEERS if p in seconds}
    return {"parameters": size, "ours (ms)": cell(1e3 * seconds[OURS]), **ratios}


def goals_of(
    training: dict[str, pd.DataFrame], peers: dict[str, pd.DataFrame], steps: int
) -> list[Goal]:
    """Return the outcomes: the dearest averaging, and ours beside each peer where it does worst."""
    shares = {
        f"{name}, {column.partition(',')[0]}": 100 * seconds[column] / (steps * seconds["step"])
        for name, seconds in training.items()
        for column in seconds
        if column.endswith("at a phase's end")
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
        ratios = {
            s: seconds[OURS] / seconds[peer] for s, seconds in peers.items() if peer in seconds
        }
        if ratios:
            worst = max(ratios, key=lambda size: ratios[size].median())
            what = f"exponential average of an epoch, slowest of {len(ratios)} ({worst})"
            measured = f"{cell(ratios[worst])} times its time"
            met = bool(ratios[worst].median() <= 1)
            found.append(Goal(what, peer, measured, "at most 1", met))
    return found


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = parser_of("averaging")
    add_rounds(parser, rounds=20, seconds=60, each="each network and size")
    add_network(parser)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=NETWORKS, help="measured")
    parser.add_argument(
        "--rna-models", nargs="*", choices=NETWORKS, default=["cnn13"], help="with RNA, too"
    )
    parser.add_argument("--batch-size", type=positive, default=128, help="images of a step")
    parser.add_argument("--epochs", type=positive, default=80, help="of a phase with RNA")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the sizes")
    arguments = parser.parse_args()
    if arguments.epochs < 3:
        parser.error(f"--epochs={arguments.epochs} must be at least 3")
    if arguments.rounds + COMPARED > EPOCHS:
        parser.error(f"--rounds={arguments.rounds} must be at most {EPOCHS - COMPARED}")
    return arguments


def main() -> int:
    """Measure and report."""
    arguments = parsed()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    steps = count_steps(TRAINING_IMAGES, arguments.batch_size)
    training: dict[str, pd.DataFrame] = {}
    rows: list[dict[str, Any]] = []
    try:
        device = pick_device(arguments.device, "--device")
        for name in arguments.models:
            print(f"{name} …", file=sys.stderr, flush=True)
            training[name], count = beside_training(name, arguments, device)
            found = training_rows(name, training[name], steps)
            rows += [{**row, "parameters": f"{count:,}"} for row in found]
        peers = beside_peers(arguments)
    except UserError as error:
        return mistaken("averaging", error)
    how = (
        f"Width {arguments.width:g}; batches of {arguments.batch_size} images of 32×32, 100 "
        f"classes; an epoch is {steps} training steps and a BatchNorm pass as many batches; the "
        "average is on the CPU. RNA is measured over one phase of "
        f"{arguments.epochs} epochs, whose files are read from the system's cache.\n\n"
        "Beside peers: exponential averages of the same decay of the same weights on the CPU. "
        f"Before, all had come to the same average of {COMPARED} epochs, what the first weights "
        "count in the peers' taken out, for ours is debiased."
    )
    tables = {
        "Averaging beside training:": rows,
        "Exponential average, as a multiple of a peer's time:": [
            peers_row(size, seconds) for size, seconds in peers.items()
        ],
    }
    packages = versions_of(*installed())
    goals = goals_of(training, peers, steps)
    report("averaging", arguments.output, device, how, goals, tables, training | peers, packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
