"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), loaded with torchvision."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phaseavg.data.downloads import load_or_download
from phaseavg.data.resident import PadValue, ResidentImages


def _first_per_class(labels: np.ndarray, count: int | None, field: str) -> np.ndarray | slice:
    """Return the indices of the first `count` images of each class, in file order."""
    limit = int(np.bincount(labels).min())
    if count is None:
        return slice(None)
    if not 1 <= count <= limit:
        raise ValueError(f"{field}={count}; choices: 1 to {limit}, null for all")
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def _load_splits(name: str, data_dir: Path | str) -> list[Any]:
    return load_or_download(name, data_dir, {"train": True}, {"train": False})


def _cifar(name: str) -> Callable[..., ResidentImages]:
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
        train_per_class: int | None = None,
        test_per_class: int | None = None,
    ) -> ResidentImages:
        counts = {"train_per_class": train_per_class, "test_per_class": test_per_class}
        sources, splits = _load_splits(name, data_dir), []
        for source, (field, count) in zip(sources, counts.items(), strict=True):
            labels = np.asarray(source.targets)
            indices = _first_per_class(labels, count, field)
            splits.append((source.data.transpose(0, 3, 1, 2)[indices], labels[indices]))
        return ResidentImages(
            *splits,
            num_classes=len(sources[0].classes),
            batch_size=batch_size,
            seed=seed,
            padding=padding,
            flip=flip,
            pad_value=pad_value,
            mean=mean,
            std=std,
            device=device,
            flipped_copy=flipped_copy,
        )

    cifar.__name__ = cifar.__qualname__ = name.lower()
    cifar.require = partial(_load_splits, name)
    return cifar


cifar10 = _cifar("CIFAR10")
"""Return CIFAR-10: 50,000 training images and 10,000 test images.

`data_dir` contains torchvision's folder `cifar-10-batches-py`, which is downloaded if missing.
`train_per_class` and `test_per_class` limit the number of images per class to the first in the
file. The other arguments are documented in `ResidentImages`. Training images occupy 240 MB
(480 MB with a mirrored copy), test images 31 MB.

Raises:
    ValueError: if a file is damaged or missing and the download fails, or an argument is out of
        range.
"""

cifar100 = _cifar("CIFAR100")
"""Return CIFAR-100 with 100 fine classes, from `cifar-100-python`; arguments as in `cifar10`."""
