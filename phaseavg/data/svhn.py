"""SVHN, cropped digits (Netzer et al., 2011), loaded with torchvision."""

from collections.abc import Sequence
from pathlib import Path

import torch

from phaseavg.data.interface import first_of_each_class
from phaseavg.data.originals import Splits, load_splits
from phaseavg.data.resident import PadValue, ResidentImages


def _load(data_dir: Path | str) -> Splits:
    splits = {"split": "train"}, {"split": "test"}
    return load_splits("SVHN", data_dir, "svhn", *splits, root="svhn")


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
    train_fraction: float = 1.0,
    rank: int = 0,
    world_size: int = 1,
) -> ResidentImages:
    """Return SVHN without the extra set: 73,257 training images and 26,032 test images.

    The folder `svhn` in `data_dir` contains the official .mat files, downloaded if missing. As in
    the paper, digits are not mirrored. `train_fraction` keeps the first images of each class. The
    other arguments are documented in `ResidentImages`. All training images occupy 352 MB (703 MB
    with a mirrored copy), the test images 80 MB.

    Raises:
        ValueError: if a file is missing or damaged and the download fails, or an argument is out
            of range.
    """
    arguments = locals()
    del arguments["data_dir"], arguments["train_fraction"]
    (images, labels), test = _load(data_dir)
    kept = first_of_each_class(labels, train_fraction)
    return ResidentImages((images[kept], labels[kept]), test, num_classes=10, **arguments)


svhn.require = _load
