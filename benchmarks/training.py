"""Compare training with timm's train.py and a torchvision-style loop, on the CPU.

    python -m benchmarks.training --timm ../pytorch-image-models

The same network trains from the same initial weights on the same noise images of CIFAR's size. An
epoch includes input and training, without evaluation and checkpoints. A step is an optimizer update
on an existing batch; only our step also crops the batch. All times are CPU seconds. On a CPU with
bf16 units, profile=fast uses bf16; timm's script runs with its defaults and with bf16.

timm cannot crop a padded image. Its nearest option enlarges half of the images by up to 5/4 and
crops them at random. timm does not decay biases and BatchNorm, and its step cannot be timed alone.
"""

import io
import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import DataLoader

import train
from benchmarks import common
from benchmarks.input import channel_statistics, cifar_transforms
from phaseavg.cli import one_line_errors
from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.training import loop
from phaseavg.training.execution import prepare
from phaseavg.training.parts import assemble, load_data, new_model
from phaseavg.training.step import new_step

RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
STEPS = 8  # steps per measurement
OURS = "ours, profile={}"
TORCHVISION = "torchvision-style loop"
TIMM = {
    "timm's train.py": "",
    "timm's train.py, bf16, channels last": "--amp --amp-dtype bfloat16 --channels-last",
}
"""Options of timm by contender."""

TIMM_OPTIONS = (
    "--dataset torch/cifar100 --num-classes 100 --img-size 32 --input-size 3 32 32 --workers 0 "
    f"--device cpu --epochs 1 --opt momentum --lr {RATE} --momentum {MOMENTUM} "
    f"--weight-decay {DECAY} --sched step --warmup-epochs 0 --smoothing 0 --color-jitter 0 "
    "--train-crop-mode rkrr --scale 0.64 1 --ratio 1 1 --train-interpolation bilinear"
)


# Ours


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Capture all output; on exit, disable torch's deterministic algorithms for other libraries."""
    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            yield output
    finally:
        torch.use_deterministic_algorithms(False)


def our_epoch(settings: Settings) -> float:
    """Return the CPU seconds of an epoch of train.py's loop."""
    times = []

    def record_time(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            times.append(common.cpu_seconds())
            return function(*arguments)

        return call

    start_and_end = {name: record_time(getattr(loop, name)) for name in ("new_step", "end_epoch")}
    with TemporaryDirectory() as folder, patch.multiple(loop, **start_and_end), quiet():
        train.run(settings.model_copy(update={"runs_dir": Path(folder)}))
    return times[1] - times[0]


def our_step(settings: Settings) -> Callable[[], float]:
    """Return a function that takes steps of a run and returns the CPU seconds per step."""
    with quiet():
        settings, device = prepare(settings)
        data, _, state = assemble(settings, device)
    step = new_step(state, data, settings)
    drawn = next(step.draws(0, 1))
    state.model.train()

    def seconds() -> float:
        with quiet():
            prepare(settings)
            return step_seconds(partial(step, *drawn))

    return seconds


def step_seconds(step: Callable[[], Any]) -> float:
    """Return the CPU seconds per step, averaged over `STEPS` steps."""
    return common.time_cpu(lambda: [step() for _ in range(STEPS)]) / STEPS


# Other libraries


def torchvision_step(model: nn.Module, optimizer: SGD, images: Tensor, labels: Tensor) -> list:
    """Take a step like torchvision's reference scripts; return loss and accuracies (%)."""
    logits = model(images)
    loss = cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.inference_mode():
        hits = logits.topk(5).indices == labels.view(-1, 1)
        return [loss.item(), *(100 * hits[:, :k].sum().item() / len(labels) for k in (1, 5))]


def torchvision_epoch(model: nn.Module, images: common.Images, batch_size: int) -> float:
    """Return the CPU seconds of an epoch on PIL images from a DataLoader."""
    pictures = common.Pictures(images, cifar_transforms(*channel_statistics(images[0])))
    loader = DataLoader(pictures, batch_size, shuffle=True)
    optimizer = sgd(model)

    def epoch() -> None:
        sums = torch.zeros(3)
        for batch, labels in loader:
            metrics = torchvision_step(model, optimizer, batch, labels)
            sums += torch.tensor(metrics) * len(labels)

    return common.time_cpu(epoch)


def sgd(model: nn.Module) -> SGD:
    """Set the model to training mode; return torch's default SGD with the run's settings."""
    return SGD(model.train().parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)


def timm_script(checkout: Path) -> tuple[ModuleType, str]:
    """Return the module train.py of a timm checkout, and timm's version.

    Raises:
        UserError: if the checkout has no train.py.
    """
    spec = spec_from_file_location("timm_train", checkout / "train.py")
    module = module_from_spec(spec)
    with patch.object(sys, "path", [str(checkout), *sys.path]):
        try:
            spec.loader.exec_module(module)
        except FileNotFoundError as error:
            raise UserError(f"--timm={checkout}: has no train.py of timm") from error
        import timm
    return module, timm.__version__


def timm_epoch(
    module: ModuleType,
    new: Callable[[], nn.Module],
    images: common.Images,
    batch_size: int,
    options: str,
) -> float:
    """Return the CPU seconds of timm's `train_one_epoch`, called by its train.py.

    The script receives our network and images. It has no workers, so none are persistent.

    Raises:
        UserError: if the script rejects its options.
    """
    from timm.models import register_model

    def phaseavg_network(**_: Any) -> nn.Module:
        return new()

    seconds = []
    replaced = {
        "create_dataset": lambda *_, **__: common.Pictures(images),
        "create_loader": partial(module.create_loader, persistent_workers=False),
        "train_one_epoch": record_seconds(module.train_one_epoch, seconds),
    }
    mean, std = (list(map(str, values)) for values in channel_statistics(images[0]))
    arguments = [*TIMM_OPTIONS.split(), "--mean", *mean, "--std", *std, "--val-split", ""]
    arguments += ["--model", phaseavg_network.__name__, "--batch-size", str(batch_size)]
    arguments += options.split()
    loggers = patch.multiple(logging.root, handlers=[], level=logging.WARNING)
    with TemporaryDirectory() as folder, loggers, quiet() as output:
        register_model(phaseavg_network)
        command = patch.object(sys, "argv", ["train.py", *arguments, "--output", folder])
        with command, patch.multiple(module, **replaced):
            try:
                module.main()
            except SystemExit as error:
                reason = output.getvalue().strip().rpartition("\n")[2]
                raise UserError(f"--timm: train.py failed with {reason!r}") from error
    return seconds[0]


def record_seconds(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """Wrap a function so that it appends the CPU seconds of each call to `seconds`."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = common.cpu_seconds()
        result = function(*arguments, **options)
        seconds.append(common.cpu_seconds() - start)
        return result

    return call


# The comparison


def measure(
    name: str, images: common.Images, options: Namespace, module: ModuleType | None
) -> dict[str, pd.DataFrame]:
    """Time an epoch and a step of a network in CPU seconds; return a row per round."""
    overrides = [
        *common.noise_overrides(options.images),
        f"model={name}",
        f"model.width={options.width}",
        f"batch_size={options.batch_size}",
        f"optimizer.lr={RATE}",
        f"weight_decay={DECAY}",
        "schedule.epochs=[1]",
        "schedule.factors=[1]",
        "averaging=none",
        "share.enabled=false",
        "rerun=true",
        "execution.device=cpu",
    ]
    plain = common.make_settings(*overrides)
    data = load_data(plain, common.CPU)

    def new() -> nn.Module:
        return new_model(plain, data)

    epochs, steps = {}, {}
    for profile in options.profiles:
        settings, way = common.make_settings(*overrides, f"profile={profile}"), OURS.format(profile)
        epochs[way], steps[way] = partial(our_epoch, settings), our_step(settings)
    model, batch = new(), next(data.train_batches(0, 1))
    step = partial(torchvision_step, model, sgd(model), *batch)
    steps[TORCHVISION] = partial(step_seconds, step)
    epochs[TORCHVISION] = lambda: torchvision_epoch(new(), images, options.batch_size)
    if module is not None:
        for way, flags in TIMM.items():
            epochs[way] = partial(timm_epoch, module, new, images, options.batch_size, flags)
    common.time_rounds(steps, 1, 0)  # warm-up
    limits = options.rounds, options.seconds
    ways = {f"epoch of {name}": epochs, f"step of {name}": steps}
    return {measured: common.time_rounds(timers, *limits) for measured, timers in ways.items()}


@one_line_errors
def main() -> int:
    """Measure, print the table and append the record."""
    parser = common.make_parser("training", __doc__.splitlines()[0], rounds=3, seconds=120)
    parser.add_argument("--images", type=common.positive, default=6_400, help="training images")
    parser.add_argument("--batch-size", type=common.positive, default=128, help="images per step")
    parser.add_argument("--models", nargs="+", default=["cnn13", "resnet34"], help="networks")
    parser.add_argument("--width", type=float, default=0.125, help="factor on all channel counts")
    parser.add_argument(
        "--profiles", nargs="+", default=["deterministic", "fast"], help="our profiles"
    )
    parser.add_argument("--timm", type=Path, help="folder of a timm checkout")
    options = parser.parse_args()
    if options.images % options.batch_size:
        raise UserError(
            f"--images={options.images}: must be a multiple of --batch-size={options.batch_size}, "
            "since timm drops a smaller last batch"
        )
    torch.set_num_threads(options.threads)
    images = common.noise(options.images)
    module, packages = None, {}
    if options.timm is not None:
        module, packages["timm"] = timm_script(options.timm)
    rounds = {}
    for name in options.models:
        print(f"{name} …", file=sys.stderr, flush=True)
        rounds |= measure(name, images, options, module)
    ours = [OURS.format(profile) for profile in options.profiles]
    rows = [
        common.row(measured, peer, times[peer], way, times[way])
        for measured, times in rounds.items()
        for peer in times.columns.drop(ours)
        for way in ours
    ]
    common.report(options, common.CPU, rows, rounds, packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
