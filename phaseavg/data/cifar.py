"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), from torchvision's files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from phaseavg.data.files import require_files
from phaseavg.data.resident import PadValue, ResidentImages


def _of_each_class(labels: np.ndarray, count: int | None, field: str) -> np.ndarray | slice:
    """Return the places of the first `count` images of each class, in the order of the file.

    Raises:
        ValueError: if a class has fewer.
    """
    least = int(np.bincount(labels).min())
    if count is None:
        return slice(None)
    if not 1 <= count <= least:
        raise ValueError(f"{field}={count}; choices: 1 to {least}, null for all")
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def _source(name: str) -> type[Any]:
    from torchvision import datasets  # takes a second, and not every data set needs it

    return getattr(datasets, name)


def _require(name: str, data_dir: Path | str) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    source = _source(name)
    files = [*source.train_list, *source.test_list, [source.meta["filename"], source.meta["md5"]]]
    require_files(
        Path(data_dir),
        source.base_folder,
        dict(files),
        # Not by `download=True`, which does nothing if only the file of class names is missing.
        lambda: download_and_extract_archive(
            source.url, str(data_dir), filename=source.filename, md5=source.tgz_md5
        ),
    )


def _resident(
    name: Literal["CIFAR10", "CIFAR100"],
    data_dir: Path | str,
    train_per_class: int | None,
    test_per_class: int | None,
    **options: Any,
) -> ResidentImages:
    source = _source(name)
    _require(name, data_dir)

    class Checked(source):
        def _check_integrity(self) -> bool:
            return True  # by md5, a moment ago; torchvision would do it twice more

    counts = {"train_per_class": train_per_class, "test_per_class": test_per_class}
    parts = []
    for field, count in counts.items():
        part = Checked(str(data_dir), train=field.startswith("train"))
        labels = np.asarray(part.targets)
        chosen = _of_each_class(labels, count, field)
        parts.append((part.data.transpose(0, 3, 1, 2)[chosen], labels[chosen]))
    return ResidentImages(
        *parts,
        num_classes=len(part.classes),
        **options,
    )


def cifar10(
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
    """Return CIFAR-10: 50,000 images for training and 10,000 for testing.

    Args:
        batch_size: images per training batch.
        seed: the run's seed.
        data_dir: holds torchvision's `cifar-10-batches-py`, which is downloaded if it is missing.
        device: where the images live (240 MB to train on, 480 with a mirrored copy; 31 to test).
        padding: see `ResidentImages`, as for all that follow.
        flip: whether images are mirrored at random.
        pad_value: what surrounds an image.
        mean: per channel; the training pixels' own by default.
        std: deviation per channel, likewise.
        flipped_copy: whether mirrored images are kept, too.
        train_per_class: images of each class to train on, the first of the file; all by default.
        test_per_class: likewise to test on.

    Raises:
        ValueError: if a file is damaged, or missing and not to be had, and as `ResidentImages`.
    """
    return _resident("CIFAR10", **locals())


def cifar100(
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
    """Return CIFAR-100, with its 100 fine classes; else as `cifar10` (`cifar-100-python`)."""
    return _resident("CIFAR100", **locals())


cifar10.require = partial(_require, "CIFAR10")
cifar100.require = partial(_require, "CIFAR100")
