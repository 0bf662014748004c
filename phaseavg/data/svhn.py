"""SVHN, cropped digits (Netzer et al., 2011), from torchvision's files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phaseavg.data.files import require_files
from phaseavg.data.resident import PadValue, ResidentImages

CLASSES = 10
FOLDER = "svhn"
SPLITS = ("train", "test")


def _load(data_dir: Path | str, split: str, download: bool = False) -> Any:
    from torchvision.datasets import SVHN  # takes a second, and not every data set needs it

    return SVHN(str(Path(data_dir, FOLDER)), split=split, download=download)


def _require(data_dir: Path | str) -> None:
    from torchvision.datasets import SVHN

    require_files(
        Path(data_dir),
        FOLDER,
        {name: md5 for _, name, md5 in (SVHN.split_list[split] for split in SPLITS)},
        lambda: [_load(data_dir, split, download=True) for split in SPLITS],
    )


def svhn(
    batch_size: int,
    seed: int,
    data_dir: Path | str = "data",
    device: torch.device | str = "cpu",
    padding: int = 4,
    flip: bool = False,
    pad_value: PadValue = "mean",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    flipped_copy: bool = True,
) -> ResidentImages:
    """Return SVHN: the 73,257 images of its train split, without the extra ones, and 26,032 tests.

    Args:
        batch_size: images per training batch.
        seed: the run's seed.
        data_dir: its folder `svhn` holds the official .mat files, downloaded if they are missing.
        device: where the images live (352 MB to train on, 703 with a mirrored copy; 80 to test).
        padding: see `ResidentImages`, as for all that follow.
        flip: whether images are mirrored at random; the paper does not, for digits have a side.
        pad_value: what surrounds an image.
        mean: per channel; the training pixels' own by default.
        std: deviation per channel, likewise.
        flipped_copy: whether, if `flip`, mirrored images are kept, too.

    Raises:
        ValueError: if a file is damaged, or missing and not to be had, and as `ResidentImages`.
    """
    _require(data_dir)
    parts = [_load(data_dir, split) for split in SPLITS]
    return ResidentImages(
        *((np.ascontiguousarray(part.data), part.labels) for part in parts),
        num_classes=CLASSES,
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


svhn.require = _require
