"""The loops that ours is measured beside: one as torchvision's, and timm's train.py."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.data import DataLoader

from benchmarks.common import processor_seconds, processor_seconds_of
from benchmarks.images import Pictures
from benchmarks.input import statistics, transforms
from phaseavg.errors import UserError

RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
STEPS = 8  # that are timed together
SCRIPT = ("main", "train_one_epoch", "create_dataset", "create_loader")  # of timm's train.py

Images = tuple[np.ndarray, list[int]]


# Torchvision's way


def reference_step(
    model: nn.Module, optimizer: SGD, images: Tensor, labels: Tensor
) -> dict[str, float]:
    """Take one step; return the loss and the accuracies (%), read from the device at once."""
    logits = model(images)
    loss = cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.inference_mode():
        hits = logits.topk(5).indices == labels.view(-1, 1)
        first, fifth = (100 * hits[:, :k].sum() / len(labels) for k in (1, 5))
    return {"loss": loss.item(), "acc1": first.item(), "acc5": fifth.item()}


def reference_steps(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return what takes STEPS steps on a batch that is there."""
    optimizer = reference_optimizer(model.train())

    def several() -> None:
        for _ in range(STEPS):
            reference_step(model, optimizer, images, labels)

    return several


def reference_optimizer(model: nn.Module) -> SGD:
    """Return torch's SGD as it is by default, with the run's settings."""
    return SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)


def reference_epoch(model: nn.Module, images: Images, batch_size: int) -> float:
    """Return the processor's seconds of an epoch of a plain loop over PIL images."""
    pictures = Pictures(*images, transforms(*statistics(images[0])))
    loader = DataLoader(pictures, batch_size, shuffle=True)
    optimizer = reference_optimizer(model)

    def epoch() -> None:
        model.train()
        sums = dict.fromkeys(("loss", "acc1", "acc5"), 0.0)
        for batch, labels in loader:
            for name, value in reference_step(model, optimizer, batch, labels).items():
                sums[name] += value * len(labels)

    return processor_seconds_of(epoch)


# Timm's


def timm_script(checkout: Path) -> tuple[ModuleType, str]:
    """Return the train.py of a checkout of timm, and the version of the timm that it works with.

    That is the checkout's own package where there is one.

    Raises:
        UserError: if there is no such script.
    """
    path = checkout / "train.py"
    spec = spec_from_file_location("timm_train", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"--timm={checkout}: has no train.py; name a checkout of timm's repository")
    script = module_from_spec(spec)
    with patch.object(sys, "path", [str(checkout), *sys.path]):
        spec.loader.exec_module(script)
        import timm
    if missing := [name for name in SCRIPT if not hasattr(script, name)]:
        raise UserError(f"--timm={checkout}: its train.py has no {', '.join(missing)}")
    return script, timm.__version__


def register(name: str, new: Callable[[], nn.Module]) -> None:
    """Have timm know a network of ours by a name."""
    from timm.models import register_model

    def entry(**_: Any) -> nn.Module:
        return new()

    entry.__name__ = name
    register_model(entry)


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Catch what is said meanwhile, also by loggers, and leave the loggers as they were."""
    handlers, level = logging.root.handlers[:], logging.root.level
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            yield said
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


TIMM_OPTIONS = (
    "--dataset torch/cifar100 --num-classes 100 --img-size 32 --input-size 3 32 32 --workers 0 "
    f"--device cpu --epochs 1 --opt momentum --lr {RATE} --momentum {MOMENTUM} "
    f"--weight-decay {DECAY} --sched step --warmup-epochs 0 --smoothing 0 --color-jitter 0 "
    "--train-crop-mode rkrr --scale 0.64 1 --ratio 1 1 --train-interpolation bilinear"
)
TIMM_DIFFERS = (
    "It has no crop from a frame of 4 pixels; the nearest that it has enlarges half of the images, "
    "by up to 5/4, and crops them at random. Biases and BatchNorm get no weight decay, and a "
    "ColorJitter of 0 is left in the transforms. Its epoch is its `train_one_epoch`; a step cannot "
    "be taken out of that. Instead of its own, it gets images that lie in memory, in torchvision's "
    "data set, and it is told that a loader without workers has no persistent ones, which torch "
    "refuses."
)


def timm_epoch(script: ModuleType, name: str, images: Images, batch_size: int) -> float:
    """Return the processor's seconds of an epoch of timm's `train_one_epoch`.

    Args:
        script: its train.py.
        name: of the network in its registry.
        images: to learn.
        batch_size: of a step.

    Raises:
        UserError: if the script refuses its arguments.
    """
    train_one_epoch, took = script.train_one_epoch, []

    def timed(*arguments: Any, **options: Any) -> Any:
        start = processor_seconds()
        metrics = train_one_epoch(*arguments, **options)
        took.append(processor_seconds() - start)
        return metrics

    mean, std = (list(map(str, values)) for values in statistics(images[0]))
    with TemporaryDirectory(prefix="phaseavg-") as folder, quiet() as said:
        arguments = [*TIMM_OPTIONS.split(), "--mean", *mean, "--std", *std, "--val-split", ""]
        arguments += ["--model", name, "--batch-size", str(batch_size), "--output", folder]
        instead = {
            "create_dataset": lambda *_, **__: Pictures(*images),
            "create_loader": partial(script.create_loader, persistent_workers=False),
            "train_one_epoch": timed,
        }
        with patch.object(sys, "argv", ["train.py", *arguments]), patch.multiple(script, **instead):
            try:
                script.main()
            except SystemExit as error:
                why = said.getvalue().strip().rpartition("\n")[2]
                raise UserError(f"--timm: its train.py ends with {why!r}") from error
    return took[0]
