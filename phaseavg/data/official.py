"""CIFAR-10, CIFAR-100 (Krizhevsky, 2009) and SVHN (Netzer et al., 2011), read by torchvision."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from phaseavg.data.interface import first_of_each_class
from phaseavg.data.originals import Splits, load_splits
from phaseavg.data.resident import PadValue, ResidentImages

Split = dict[str, Any]
"""The arguments of a torchvision class that select a split."""


def _official(
    name: str, num_classes: int, files: str, train: Split, test: Split, flipped: bool, root: str
) -> Callable[..., ResidentImages]:
    """Return a data set of the torchvision class `name`; see `load_splits` for files and root."""

    def load(data_dir: Path | str) -> Splits:
        return load_splits(name, data_dir, files, (train, test), root)

    def data_set(
        batch_size: int,
        seed: int,
        data_dir: Path | str = "data",
        device: torch.device | str = "cpu",
        padding: int = 4,
        flip: bool = flipped,
        pad_value: PadValue = "mean",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        train_fraction: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> ResidentImages:
        (images, labels), tests = load(data_dir)
        kept = first_of_each_class(labels, train_fraction)
        return ResidentImages(
            (images[kept], labels[kept]),
            tests,
            num_classes,
            batch_size=batch_size,
            seed=seed,
            padding=padding,
            flip=flip,
            pad_value=pad_value,
            mean=mean,
            std=std,
            device=device,
            rank=rank,
            world_size=world_size,
        )

    data_set.__name__ = data_set.__qualname__ = name.lower()
    data_set.require = load
    return data_set


_CIFAR: dict[str, Any] = {
    "train": {"train": True},
    "test": {"train": False},
    "flipped": True,
    "root": "",
}

cifar10 = _official("CIFAR10", 10, "cifar-10-batches-py", **_CIFAR)
"""Return CIFAR-10: 50,000 training images and 10,000 test images.

`data_dir` contains torchvision's folder `cifar-10-batches-py`, which is downloaded if missing.
`train_fraction` keeps the first images of each class, such as a tenth. The other arguments are
documented in `ResidentImages`. All training images occupy 240 MB, the test images 31 MB.

Raises:
    ValueError: if a file is damaged or missing and the download fails, or an argument is out of
        range.
"""

cifar100 = _official("CIFAR100", 100, "cifar-100-python", **_CIFAR)
"""Return CIFAR-100 with 100 fine classes, from `cifar-100-python`; arguments as in `cifar10`."""

svhn = _official(
    "SVHN", 10, "svhn", {"split": "train"}, {"split": "test"}, flipped=False, root="svhn"
)
"""Return SVHN without the extra set: 73,257 training images and 26,032 test images.

The folder `svhn` in `data_dir` contains the official .mat files, downloaded if missing. As in the
paper, digits are not mirrored. The arguments are those of `cifar10`. All training images occupy
352 MB, the test images 80 MB.
"""
