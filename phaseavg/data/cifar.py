"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), loaded with torchvision."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from phaseavg.data.interface import first_of_each_class
from phaseavg.data.originals import Splits, load_splits
from phaseavg.data.resident import PadValue, ResidentImages

FOLDERS = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}


def _load(name: str, data_dir: Path | str) -> Splits:
    return load_splits(name, data_dir, FOLDERS[name], {"train": True}, {"train": False})


def _cifar(name: str, num_classes: int) -> Callable[..., ResidentImages]:
    def cifar(
        batch_size: int,
        seed: int,
        data_dir: Path | str = "data",
        device: torch.device | str = "cpu",
        padding: int = 4,
        flip: bool = True,
        pad_value: PadValue = "mean",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        flipped_copy: bool = True,
        train_fraction: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> ResidentImages:
        (images, labels), test = _load(name, data_dir)
        kept = first_of_each_class(labels, train_fraction)
        return ResidentImages(
            (images[kept], labels[kept]),
            test,
            num_classes,
            batch_size=batch_size,
            seed=seed,
            padding=padding,
            flip=flip,
            pad_value=pad_value,
            mean=mean,
            std=std,
            device=device,
            flipped_copy=flipped_copy,
            rank=rank,
            world_size=world_size,
        )

    cifar.__name__ = cifar.__qualname__ = name.lower()
    cifar.require = partial(_load, name)
    return cifar


cifar10 = _cifar("CIFAR10", 10)
"""Return CIFAR-10: 50,000 training images and 10,000 test images.

`data_dir` contains torchvision's folder `cifar-10-batches-py`, which is downloaded if missing.
`train_fraction` keeps the first images of each class, such as a tenth. The other arguments are
documented in `ResidentImages`. All training images occupy 240 MB (480 MB with a mirrored copy),
the test images 31 MB.

Raises:
    ValueError: if a file is damaged or missing and the download fails, or an argument is out of
        range.
"""

cifar100 = _cifar("CIFAR100", 100)
"""Return CIFAR-100 with 100 fine classes, from `cifar-100-python`; arguments as in `cifar10`."""
