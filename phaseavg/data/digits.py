"""Scikit-learn's digits (8×8 scans) with label noise in the training set."""

from collections.abc import Sequence
from importlib.metadata import distribution

import numpy as np
import torch

from phaseavg.data.resident import PadValue, ResidentImages
from phaseavg.randomness import generator

FILE = "sklearn/datasets/data/digits.csv.gz"
TRAIN_SIZE = 1000  # the other 797 of 1,797 images are the test set
CLASSES = 10
SPLIT_SEED = 0  # seed of the split and the label noise in all runs


def digits(
    batch_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    label_noise: float = 0.2,
    padding: int = 1,
    flip: bool = False,
    pad_value: PadValue = "mean",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> ResidentImages:
    """Return scikit-learn's digits: 1,000 training images and 797 test images, without download.

    Grey levels 0-16 are scaled to 0-240. A fraction `label_noise` of the training labels is
    replaced by uniformly random labels, of which a tenth are correct. Split and noise are fixed;
    `seed` determines the batches. The other arguments are documented in `ResidentImages`.

    Raises:
        ValueError: if an argument is out of range.
    """
    options = {**locals()}
    options.pop("label_noise")
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise} must lie between 0 and 1")
    # The file behind scikit-learn's `load_digits`; importing scikit-learn takes seconds.
    table = np.loadtxt(distribution("scikit-learn").locate_file(FILE), np.uint8, delimiter=",")
    images = (table[:, :-1] * 15).reshape(-1, 1, 8, 8)
    random = generator(SPLIT_SEED, "digits")
    order = random.permutation(len(images))
    train, test = order[:TRAIN_SIZE], order[TRAIN_SIZE:]
    labels = table[:, -1].copy()
    noisy = random.permutation(train)[: round(label_noise * TRAIN_SIZE)]
    labels[noisy] = random.integers(0, CLASSES, len(noisy))
    return ResidentImages(
        (images[train], labels[train]), (images[test], table[test, -1]), CLASSES, **options
    )
