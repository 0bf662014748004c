"""Images for the benchmarks: of CIFAR-100, or noise where there is no such folder."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torchvision.datasets import CIFAR100, VisionDataset
from torchvision.transforms import Compose

from phaseavg.data.resident import ResidentImages
from phaseavg.errors import UserError

CLASSES = 100
OF_CLASS = 500  # training images of CIFAR-100


class Pictures(CIFAR100):
    """Any images behind torchvision's own `CIFAR100.__getitem__`, which makes PIL images of them.

    Args:
        images: uint8 (N, H, W, C).
        labels: N of them.
        transform: of an image.
    """

    def __init__(
        self, images: np.ndarray, labels: list[int], transform: Compose | None = None
    ) -> None:
        VisionDataset.__init__(self, root="", transform=transform)
        self.data, self.targets = images, labels


def noise(per_class: int) -> tuple[np.ndarray, list[int]]:
    """Return noise of the shape of CIFAR-100, uint8 (N, 32, 32, 3), and labels, class by class."""
    random = np.random.default_rng(per_class)
    images = random.integers(0, 256, (CLASSES * per_class, 32, 32, 3), dtype=np.uint8)
    return images, [c for c in range(CLASSES) for _ in range(per_class)]


def noise_set(
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    train_per_class: int = OF_CLASS,
    test_per_class: int = OF_CLASS,
    train_images: int | None = None,
    **options: Any,
) -> ResidentImages:
    """Return noise in place of CIFAR-100; what is tested on is some of it.

    Args:
        batch_size: images of a batch.
        seed: of the run.
        device: where it lies.
        train_per_class: images of each class.
        test_per_class: of these.
        train_images: of all classes together, instead.
        options: of `ResidentImages`.
    """
    if train_images is not None:
        train_per_class = test_per_class = train_images // CLASSES
    images, labels = noise(train_per_class)
    train = images.transpose(0, 3, 1, 2), np.asarray(labels)
    test = tuple(part[: CLASSES * test_per_class] for part in train)
    return ResidentImages(train, test, CLASSES, batch_size, seed, device=device, **options)


def large_noise_set(
    batch_size: int,
    seed: int,
    train_images: int,
    device: torch.device | str = "cpu",
    **options: Any,
) -> ResidentImages:
    """Return noise in the shape of ImageNet's images as networks get them, of a thousand classes.

    It lies on the device and is augmented as CIFAR is: what is left out is reading files.
    """
    random = np.random.default_rng(train_images)
    images = random.integers(0, 256, (train_images, 3, 224, 224), dtype=np.uint8)
    part = images, random.integers(0, 1000, train_images)
    few = tuple(of[:1] for of in part)
    return ResidentImages(part, few, 1000, batch_size, seed, device=device, **options)


def add_images(parser: ArgumentParser, default: int) -> None:
    """Add the options of what is measured on images."""
    parser.add_argument("--data-dir", type=Path, help="holds CIFAR-100; noise if left out")
    parser.add_argument("--images", type=_of_all_classes, default=default, help="to train on")


def _of_all_classes(typed: str) -> int:
    number = int(typed)
    if number % CLASSES or not 0 < number <= CLASSES * OF_CLASS:
        raise ArgumentTypeError(f"{typed} is no multiple of {CLASSES} up to {CLASSES * OF_CLASS:,}")
    return number


def training_images(data_dir: Path | None, count: int) -> tuple[np.ndarray, list[int]]:
    """Return the first training images of each class, or noise, and their labels.

    Args:
        data_dir: holds CIFAR-100; none for noise.
        count: of all classes together.

    Raises:
        UserError: if the folder does not hold CIFAR-100.
    """
    per_class = count // CLASSES
    if data_dir is None:
        return noise(per_class)
    try:
        whole = CIFAR100(str(data_dir))
    except RuntimeError as error:
        raise UserError(f"--data-dir={data_dir}: holds no whole cifar-100-python") from error
    labels = pd.Series(whole.targets)
    chosen = labels.groupby(labels).head(per_class)
    return whole.data[chosen.index], chosen.to_list()


def overrides_of(data_dir: Path | None, count: int) -> list[str]:
    """Return what makes a run train on the same images, and test on a fifth as many."""
    per_class = count // CLASSES
    noise_instead = "dataset._target_=benchmarks.images.noise_set"
    return [
        noise_instead if data_dir is None else f"data_dir={data_dir}",
        f"+dataset.train_per_class={per_class}",
        f"+dataset.test_per_class={max(1, per_class // 5)}",
    ]


def in_words(data_dir: Path | None, count: int) -> str:
    """Return which images these are."""
    if data_dir is None:
        return f"{count:,} images of noise in the shape of CIFAR-100"
    return f"{count:,} training images of CIFAR-100, as many of each class"
