"""scikit-learn's digits: split and label noise."""

from collections import Counter

import numpy as np
import pytest
from data.batches import concatenate
from sklearn.datasets import load_digits

from phaseavg.data import digits


def raw(data, images):
    """Return the grey levels 0-240 of standardised images, as bytes per image."""
    pixels = images * data.standardise.std + data.standardise.mean
    return [image.tobytes() for image in pixels.round().numpy().astype(np.uint8)]


def training_set(seed=0, **options):
    """Return (pixels, label) of all training images in arbitrary order."""
    data = digits(batch_size=1000, seed=seed, padding=0, **options)
    ((images, labels),) = data.train_batches(0, 1)
    return list(zip(raw(data, images), labels.tolist(), strict=True))


def held_out():
    """Return (pixels, label) of all test images."""
    data = digits(batch_size=64, seed=0)
    images, labels = concatenate(data.test_batches())
    return list(zip(raw(data, images), labels.tolist(), strict=True))


def scikit_learn_labels():
    """Return the label of each of scikit-learn's images."""
    source = load_digits()
    levels = (source.images * 15).astype(np.uint8)
    return {x.tobytes(): y for x, y in zip(levels, source.target.tolist(), strict=True)}


def test_split_contains_each_scikit_learn_image_once():
    levels = (load_digits().images * 15).astype(np.uint8)
    train, test = training_set(), held_out()
    assert (len(train), len(test)) == (1000, 797)
    actual = Counter(pixels for pixels, _ in [*train, *test])
    assert actual == Counter(image.tobytes() for image in levels)


def test_test_labels_are_clean():
    labels = scikit_learn_labels()
    assert all(label == labels[pixels] for pixels, label in held_out())


@pytest.mark.parametrize(
    ("label_noise", "low", "high"),
    [
        (0.0, 0, 0),
        (None, 0.16, 0.197),  # the default: 0.2 · 0.9, for a tenth of the random labels is right
        (1.0, 0.87, 0.93),
    ],
)
def test_nine_tenths_of_the_noise_are_wrong_labels_of_any_class(label_noise, low, high):
    options = {} if label_noise is None else {"label_noise": label_noise}
    truth = scikit_learn_labels()
    images = training_set(**options)
    assert low <= np.mean([truth[pixels] != label for pixels, label in images]) <= high
    counts = Counter(label for _, label in images)
    assert 65 < min(counts.values()) < max(counts.values()) < 140
    assert len(counts) == 10


def test_split_and_noise_are_equal_for_all_seeds_but_the_order_differs():
    first, second = training_set(seed=0), training_set(seed=1)
    assert first != second
    assert sorted(first) == sorted(second)


def test_label_noise_out_of_range_is_rejected():
    with pytest.raises(ValueError, match=r"label_noise=1.1 must lie between 0 and 1"):
        digits(batch_size=64, seed=0, label_noise=1.1)
