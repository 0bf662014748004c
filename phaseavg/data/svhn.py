"""SVHN, cropped digits (Netzer et al., 2011), from torchvision's files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phaseavg.data.downloads import downloaded
from phaseavg.data.resident import PadValue, ResidentImages


def _parts(data_dir: Path | str) -> list[Any]:
    return downloaded("SVHN", data_dir, {"split": "train"}, {"split": "test"}, folder="svhn")


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

    The folder `svhn` in `data_dir` holds the official .mat files, downloaded if they are missing.
    `ResidentImages` describes the other arguments. Images are not mirrored, as in the paper: digits
    have a side. They take 352 MB to train on, 703 with a mirrored copy, and 80 to test.

    Raises:
        ValueError: if a file is missing or damaged and cannot be downloaded, or a value is out of
            range.
    """
    arguments = locals()
    parts = [(np.ascontiguousarray(part.data), part.labels) for part in _parts(data_dir)]
    del arguments["data_dir"]
    return ResidentImages(*parts, num_classes=10, **arguments)


svhn.require = _parts
