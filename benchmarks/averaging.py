"""Compare our averages with a training epoch and with the averages of other libraries.

    python -m benchmarks.averaging

Training: a round times a training step, `epoch_end` inside a phase and at its end, and a batch of
a BatchNorm pass. The time per epoch is the time of a step times the steps on 50,000 images. RNA
stores the weights of every epoch, so each `epoch_end` takes longer than the previous call; one
full RNA phase is timed once.

Other libraries: a model of bare parameters takes a random step, and every library updates its
average with the same decay. Before timing, all averages must agree. All times are wall-clock
seconds; averages are on the CPU.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pandas as pd
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import common
from phaseavg.averaging import RNA, Exponential, Phasewise
from phaseavg.cli import one_line_errors
from phaseavg.data.interface import count_steps
from phaseavg.errors import UserError
from phaseavg.training.parts import assemble
from phaseavg.training.step import new_step

TRAINING_IMAGES = 50_000  # CIFAR's training set
SIZES = [(25_000_000, 800), (25_000_000, 20), (100_000_000, 800), (100_000_000, 20)]
"""Parameters and tensors of the models for the comparison with other libraries."""
PEERS = {"timm": "timm", "ema-pytorch": "ema_pytorch", "lightning": "lightning"}
"""The module of each package; torch's average is part of torch."""
OURS = "ours"
DECAY = 0.9
EPOCHS = 8_000  # length of our phase, longer than the number of rounds
COMPARED = 5  # number of epochs before the averages are compared
WALK = 1e-3  # standard deviation of the random step between two epochs


@torch.no_grad()
def walk(model: nn.Module) -> None:
    """Move the weights by a random step, as a substitute for a training epoch."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=WALK)


# Comparison with training


def time_training(name: str, options: Namespace) -> pd.DataFrame:
    """Time each part of a network's training and averaging; return a row per round."""
    settings = common.make_settings(
        *common.noise_overrides(options.batch_size),
        f"model={name}",
        f"model.width={options.width}",
        f"batch_size={options.batch_size}",
        "averaging=none",
        "execution.device=cpu",
    )
    data, _, state = assemble(settings, common.CPU)
    model, step = state.model.train(), new_step(state, data, settings)
    drawn = next(step.draws(0, 1))
    timers = {
        "step": partial(common.time_wall, partial(step, *drawn)),
        "exponential, inside a phase": partial(common.epoch_end_seconds, model, epochs=3),
        "exponential, at its end": partial(common.epoch_end_seconds, model, epochs=2),
        "BatchNorm batch": common.batchnorm_seconds(model, data),
    }
    common.time_rounds(timers, 1, 0)  # warm-up
    seconds = common.time_rounds(timers, options.rounds, options.seconds)
    if name in options.rna_models:
        with TemporaryDirectory() as folder:
            *inside, last = rna_phase(model, Path(folder), options.rna_epochs)
        seconds["RNA, inside a phase"] = sum(inside) / len(inside)
        seconds["RNA, at its end"] = last
    return seconds


def rna_phase(model: nn.Module, folder: Path, epochs: int) -> list[float]:
    """Return the seconds of RNA's `epoch_end` in each epoch of a phase after the first."""
    averager = Phasewise(model, [epochs], RNA(folder))
    seconds = []
    for _ in range(epochs):
        walk(model)
        seconds.append(common.time_wall(lambda: averager.epoch_end(model)))
    return seconds[1:]


def training_rows(name: str, seconds: pd.DataFrame, steps: int) -> list[dict[str, str]]:
    """Return the rows of a network: each part of averaging against an epoch of `steps` steps."""
    parts = seconds.drop(columns=["step", "BatchNorm batch"])
    parts["BatchNorm pass"] = steps * seconds["BatchNorm batch"]
    epoch = steps * seconds["step"]
    return [common.row(name, part, parts[part], "epoch of training", epoch) for part in parts]


# Comparison with other libraries


class Average(NamedTuple):
    """An exponential average: a function to update it, and a function that returns its weights."""

    update: Callable[[nn.Module], object]
    weights: Callable[[], Iterable[Tensor]]


def averages(model: nn.Module) -> dict[str, Average]:
    """Return our average and the installed libraries' averages, initialised from a model."""
    # With T = EPOCHS, γ = γ0^(80/T) equals the decay of the other libraries.
    averager = Phasewise(model, [EPOCHS], Exponential(DECAY ** (EPOCHS / 80)))
    torch_ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # fastest
    timm_ema = ModelEmaV3(model, decay=DECAY)
    emas = {
        OURS: Average(averager.epoch_end, lambda: averager.average.tensors),
        "torch AveragedModel": Average(torch_ema.update_parameters, torch_ema.module.parameters),
        "timm ModelEmaV3": Average(timm_ema.update, timm_ema.module.parameters),
    }
    if find_spec("ema_pytorch"):
        from ema_pytorch import EMA

        ema = EMA(model, beta=DECAY, update_after_step=-1, update_every=1, inv_gamma=1, power=1e9)
        parameters = ema.ema_model.parameters
        emas["ema-pytorch EMA"] = Average(lambda _: ema.update(), parameters)
    if find_spec("lightning"):
        from lightning.pytorch.callbacks import EMAWeightAveraging

        callback = EMAWeightAveraging(decay=DECAY)  # builds the average below
        lightning_ema = AveragedModel(model, use_buffers=callback._use_buffers, **callback._kwargs)
        parameters = lightning_ema.module.parameters
        emas["Lightning EMAWeightAveraging"] = Average(lightning_ema.update_parameters, parameters)
    for average in emas.values():
        average.update(model)
    return emas


@torch.no_grad()
def require_same(model: nn.Module) -> None:
    """Check that all averages agree after a few epochs; changes the weights of the model.

    Other libraries compute e_t = γ^t θ_1 + (1 − γ) Σ γ^(t−s) θ_s, which counts θ_1 once more than
    our debiased average θ̄_t. Therefore θ̄_t − θ_1 = (e_t − θ_1) / (1 − γ^t).

    Raises:
        AssertionError: if the averages differ.
    """
    emas = averages(model)
    first = [parameter.clone() for parameter in model.parameters()]
    for _ in range(COMPARED - 1):
        walk(model)
        for average in emas.values():
            average.update(model)
    ours = emas.pop(OURS).weights()
    expected = [tensor - start for tensor, start in zip(ours, first, strict=True)]
    for average in emas.values():
        for theirs, start, difference in zip(average.weights(), first, expected, strict=True):
            debiased = (theirs - start) / (1 - DECAY**COMPARED)
            torch.testing.assert_close(debiased, difference, rtol=1e-3, atol=1e-5)


def make_parameters(count: int, tensors: int) -> nn.Module:
    """Return a model of bare parameters: `count` numbers in `tensors` tensors."""
    return nn.ParameterList([torch.randn(count // tensors) for _ in range(tensors)])


def time_peers(count: int, tensors: int, options: Namespace) -> pd.DataFrame:
    """Time an update of each average; return a row per round."""
    model = make_parameters(count, tensors)
    timers = {
        name: partial(common.time_wall, partial(average.update, model))
        for name, average in averages(model).items()
    }
    common.time_rounds(timers, 1, 0)  # warm-up
    return common.time_rounds(timers, options.rounds, options.seconds)


@one_line_errors
def main() -> int:
    """Check, measure, print the table and append the record."""
    parser = common.make_parser("averaging", __doc__.splitlines()[0], rounds=20, seconds=60)
    networks = ["cnn13", "resnet34", "densenet121", "wrn28_10"]
    parser.add_argument("--models", nargs="*", default=networks, help="networks")
    parser.add_argument("--rna-models", nargs="*", default=["cnn13"], help="networks with RNA")
    parser.add_argument("--rna-epochs", type=int, default=80, help="length of the RNA phase")
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts")
    parser.add_argument("--batch-size", type=common.positive, default=32, help="images per step")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the parameter counts")
    options = parser.parse_args()
    if options.rna_epochs < 3:
        raise UserError(f"--rna-epochs={options.rna_epochs}: must be at least 3")
    if options.rounds > EPOCHS - 10:
        raise UserError(f"--rounds={options.rounds}: must be at most {EPOCHS - 10}")
    torch.set_num_threads(options.threads)
    require_same(make_parameters(1000, 10))
    steps = count_steps(TRAINING_IMAGES, options.batch_size)
    rows, rounds = [], {}
    for name in options.models:
        print(f"{name} …", file=sys.stderr, flush=True)
        rounds[name] = time_training(name, options)
        rows += training_rows(name, rounds[name], steps)
    for count, tensors in SIZES:
        count = int(count * options.scale)
        size = f"{count / 1e6:g} M in {tensors} tensors"
        print(f"{size} …", file=sys.stderr, flush=True)
        times = rounds[size] = time_peers(count, tensors, options)
        rows += [common.row(size, OURS, times[OURS], p, times[p]) for p in times.columns.drop(OURS)]
    packages = {package: version(package) for package, name in PEERS.items() if find_spec(name)}
    common.report(options, common.CPU, rows, rounds, packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
