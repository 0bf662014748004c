"""Time our averages beside a training epoch and beside the averages of other libraries.

    python -m benchmarks.averaging

Beside training: a round times a training step, `epoch_end` inside a phase and at its end, and a
batch of a BatchNorm pass. An epoch is the time of a step times the steps on 50,000 images. RNA
stores the weights of every epoch and each `epoch_end` costs more than the last one; a whole phase
of it is timed once.

Beside other libraries: models that consist of parameters alone take a random step, and every
average takes in their weights, with the same decay. Before timing, all must arrive at the same
average. All times are wall-clock seconds; averages are on the CPU.
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
from phaseavg.cli import script
from phaseavg.data.interface import count_steps
from phaseavg.errors import UserError
from phaseavg.training.parts import assemble
from phaseavg.training.step import new_step

TRAINING_IMAGES = 50_000  # of CIFAR
SIZES = [(25_000_000, 800), (25_000_000, 20), (100_000_000, 800), (100_000_000, 20)]
"""Parameters and tensors of the models beside other libraries."""
PEERS = {"timm": "timm", "ema-pytorch": "ema_pytorch", "lightning": "lightning"}
"""The module of each package; torch's average comes with torch."""
OURS = "ours"
DECAY = 0.9
EPOCHS = 8_000  # of our phase: more than there are rounds
COMPARED = 5  # epochs after which all must have the same average
WALK = 1e-3  # deviation of the random steps between two epochs


@torch.no_grad()
def walk(model: nn.Module) -> None:
    """Move the weights by a random step, in place of an epoch of training."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=WALK)


# Beside training


def beside_training(name: str, options: Namespace) -> pd.DataFrame:
    """Return the seconds of each part of a network's training and averaging, a row per round."""
    settings = common.settings_of(
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
    contenders = {
        "step": partial(common.wall_seconds_of, partial(step, *drawn)),
        "exponential, inside a phase": partial(common.epoch_end_seconds, model, epochs=3),
        "exponential, at its end": partial(common.epoch_end_seconds, model, epochs=2),
        "BatchNorm batch": common.batchnorm_seconds(model, data),
    }
    common.in_rounds(contenders, 1, 0)  # warm-up
    seconds = common.in_rounds(contenders, options.rounds, options.seconds)
    if name in options.rna_models:
        with TemporaryDirectory() as folder:
            *inside, last = rna_phase(model, Path(folder), options.rna_epochs)
        seconds["RNA, inside a phase"] = sum(inside) / len(inside)
        seconds["RNA, at its end"] = last
    return seconds


def rna_phase(model: nn.Module, folder: Path, epochs: int) -> list[float]:
    """Return the seconds of `epoch_end` with RNA in each epoch of a phase but the first."""
    averager = Phasewise(model, [epochs], RNA(folder))
    seconds = []
    for _ in range(epochs):
        walk(model)
        seconds.append(common.wall_seconds_of(lambda: averager.epoch_end(model)))
    return seconds[1:]


def training_rows(name: str, seconds: pd.DataFrame, steps: int) -> list[dict[str, str]]:
    """Return the rows of a network: every part of averaging beside an epoch of `steps` steps."""
    parts = seconds.drop(columns=["step", "BatchNorm batch"])
    parts["BatchNorm pass"] = steps * seconds["BatchNorm batch"]
    epoch = steps * seconds["step"]
    return [common.row(name, part, parts[part], "epoch of training", epoch) for part in parts]


# Beside other libraries


class Average(NamedTuple):
    """An exponential average: takes in a model's weights, and returns its own in their order."""

    update: Callable[[nn.Module], object]
    weights: Callable[[], Iterable[Tensor]]


def averages(model: nn.Module) -> dict[str, Average]:
    """Return our average and those of installed libraries, started from the weights of a model."""
    # γ = γ0^(80/T) is the peers' decay.
    averager = Phasewise(model, [EPOCHS], Exponential(DECAY ** (EPOCHS / 80)))
    of_torch = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # its fastest way
    of_timm = ModelEmaV3(model, decay=DECAY)
    found = {
        OURS: Average(averager.epoch_end, lambda: averager.average.tensors),
        "torch AveragedModel": Average(of_torch.update_parameters, of_torch.module.parameters),
        "timm ModelEmaV3": Average(of_timm.update, of_timm.module.parameters),
    }
    if find_spec("ema_pytorch"):
        from ema_pytorch import EMA

        ema = EMA(model, beta=DECAY, update_after_step=-1, update_every=1, inv_gamma=1, power=1e9)
        parameters = ema.ema_model.parameters
        found["ema-pytorch EMA"] = Average(lambda _: ema.update(), parameters)
    if find_spec("lightning"):
        from lightning.pytorch.callbacks import EMAWeightAveraging

        callback = EMAWeightAveraging(decay=DECAY)  # which makes its average in this way
        of_it = AveragedModel(model, use_buffers=callback._use_buffers, **callback._kwargs)
        parameters = of_it.module.parameters
        found["Lightning EMAWeightAveraging"] = Average(of_it.update_parameters, parameters)
    for average in found.values():
        average.update(model)
    return found


@torch.no_grad()
def require_same(model: nn.Module) -> None:
    """Check that all averages of a few epochs are the same; moves the weights of the model.

    A peer's e_t = γ^t θ_1 + (1 − γ) Σ γ^(t−s) θ_s counts the first weights θ_1 once more than our
    debiased average θ̄_t, so that θ̄_t − θ_1 = (e_t − θ_1) / (1 − γ^t).

    Raises:
        AssertionError: if they differ.
    """
    found = averages(model)
    first = [parameter.clone() for parameter in model.parameters()]
    for _ in range(COMPARED - 1):
        walk(model)
        for average in found.values():
            average.update(model)
    expected = [own - start for own, start in zip(found.pop(OURS).weights(), first, strict=True)]
    for average in found.values():
        for theirs, start, own in zip(average.weights(), first, expected, strict=True):
            debiased = (theirs - start) / (1 - DECAY**COMPARED)
            torch.testing.assert_close(debiased, own, rtol=1e-3, atol=1e-5)


def of_parameters(count: int, tensors: int) -> nn.Module:
    """Return a model of parameters alone: `count` numbers in `tensors` tensors."""
    return nn.ParameterList([torch.randn(count // tensors) for _ in range(tensors)])


def beside_peers(count: int, tensors: int, options: Namespace) -> pd.DataFrame:
    """Return the seconds of an update of each average, a row per round."""
    model = of_parameters(count, tensors)
    contenders = {
        name: partial(common.wall_seconds_of, partial(average.update, model))
        for name, average in averages(model).items()
    }
    common.in_rounds(contenders, 1, 0)  # warm-up
    return common.in_rounds(contenders, options.rounds, options.seconds)


@script
def main() -> int:
    """Check, measure, print the table and append the record."""
    parser = common.parser_of("averaging", __doc__.splitlines()[0], rounds=20, seconds=60)
    networks = ["cnn13", "resnet34", "densenet121", "wrn28_10"]
    parser.add_argument("--models", nargs="*", default=networks, help="networks")
    parser.add_argument("--rna-models", nargs="*", default=["cnn13"], help="of these, with RNA")
    parser.add_argument("--rna-epochs", type=int, default=80, help="of a phase with RNA")
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts")
    parser.add_argument("--batch-size", type=common.positive, default=32, help="images per step")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the peers' models")
    options = parser.parse_args()
    if options.rna_epochs < 3:
        raise UserError(f"--rna-epochs={options.rna_epochs}: must be at least 3")
    if options.rounds > EPOCHS - 10:
        raise UserError(f"--rounds={options.rounds}: must be at most {EPOCHS - 10}")
    torch.set_num_threads(options.threads)
    require_same(of_parameters(1000, 10))
    steps = count_steps(TRAINING_IMAGES, options.batch_size)
    rows, rounds = [], {}
    for name in options.models:
        print(f"{name} …", file=sys.stderr, flush=True)
        rounds[name] = beside_training(name, options)
        rows += training_rows(name, rounds[name], steps)
    for count, tensors in SIZES:
        count = int(count * options.scale)
        size = f"{count / 1e6:g} M in {tensors} tensors"
        print(f"{size} …", file=sys.stderr, flush=True)
        times = rounds[size] = beside_peers(count, tensors, options)
        rows += [common.row(size, p, times[p], OURS, times[OURS]) for p in times.columns.drop(OURS)]
    packages = {package: version(package) for package, name in PEERS.items() if find_spec(name)}
    common.report(options, common.CPU, rows, rounds, packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
