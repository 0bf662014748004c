"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from torchvision's files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phaseavg.data.downloads import downloaded
from phaseavg.data.resident import PadValue, ResidentImages


def _of_each_class(labels: np.ndarray, count: int | None, field: str) -> np.ndarray | slice:
    """Return the indices of the first `count` images of each class, in the order of the file."""
    least = int(np.bincount(labels).min())
    if count is None:
        return slice(None)
    if not 1 <= count <= least:
        raise ValueError(f"{field}={count}; choices: 1 to {least}, null for all")
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def _parts(name: str, data_dir: Path | str) -> list[Any]:
    return downloaded(name, data_dir, {"train": True}, {"train": False})


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
        parts, splits = _parts(name, data_dir), []
        for part, (field, count) in zip(parts, counts.items(), strict=True):
            labels = np.asarray(part.targets)
            chosen = _of_each_class(labels, count, field)
            splits.append((part.data.transpose(0, 3, 1, 2)[chosen], labels[chosen]))
        return ResidentImages(
            *splits,
            num_classes=len(parts[0].classes),
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
    cifar.require = partial(_parts, name)
    return cifar


cifar10 = _cifar("CIFAR10")
"""Return CIFAR-10: 50,000 images for training and 10,000 for testing.

`data_dir` holds torchvision's `cifar-10-batches-py`, which is downloaded if it is missing;
`train_per_class` and `test_per_class` take so many images of each class, the first of the file.
`ResidentImages` describes the other arguments. The images take 240 MB to train on, 480 with a
mirrored copy, and 31 to test.

Raises:
    ValueError: if a file is damaged or missing and cannot be downloaded, or a value is out of
        range.
"""

cifar100 = _cifar("CIFAR100")
"""Return CIFAR-100, with its 100 fine classes; else as `cifar10` (`cifar-100-python`)."""
