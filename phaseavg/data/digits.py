"""The embedded data: scikit-learn's digits, real 8×8 scans, trained on with label noise."""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

from phaseavg.data.resident import PadValue, ResidentImages
from phaseavg.randomness import generator

FILE = "sklearn/datasets/data/digits.csv.gz"
TRAIN_SIZE = 1000  # of 1,797; the other 797 are the test set
CLASSES = 10
PARTITION = 0  # seed of the split and of the label noise, for all runs alike


def digits(
    batch_size: int,
    seed: int,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    label_noise: float = 0.2,
    padding: int = 1,
    pad_value: PadValue = "mean",
) -> ResidentImages:
    """Return 1,000 digits for training and 797 for testing (needs no download).

    Grey levels 0-16 are stretched to 0-240. A share `label_noise` of the training labels is
    replaced by uniformly random ones (a tenth of these hit the right class). Split and noise are
    fixed; `seed` draws batches. `ResidentImages` describes the other arguments; `data_dir` is not
    used, for the data come with scikit-learn.

    Raises:
        ValueError: if a value is out of range.
    """
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise={label_noise} must lie between 0 and 1")
    # The file that scikit-learn's `load_digits` reads, without seconds of importing scikit-learn.
    table = np.loadtxt(distribution("scikit-learn").locate_file(FILE), np.uint8, delimiter=",")
    images = (table[:, :-1] * 15).reshape(-1, 1, 8, 8)
    random = generator(PARTITION, "digits")
    order = random.permutation(len(images))
    train, test = order[:TRAIN_SIZE], order[TRAIN_SIZE:]
    labels = table[:, -1].copy()
    noisy = random.permutation(train)[: round(label_noise * TRAIN_SIZE)]
    labels[noisy] = random.integers(0, CLASSES, len(noisy))
    return ResidentImages(
        (images[train], labels[train]),
        (images[test], table[test, -1]),
        num_classes=CLASSES,
        batch_size=batch_size,
        seed=seed,
        padding=padding,
        pad_value=pad_value,
        device=device,
    )
