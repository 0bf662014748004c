"""ResidentImages: augmentation and reproducible batches."""

from itertools import islice

import numpy as np
import pytest
import scipy.stats
import torch
from data.batches import PIXELS, concatenate, equal
from torchvision.transforms import functional as tv

from phaseavg.data import ResidentImages


def random_images(count, channels=3, size=8, seed=0):
    shape = (count, channels, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def maps(count, size=10):
    """Return images that say in every pixel what row (channel 0) and column (1) it comes from.

    Both are counted from 1, channel 2 is random. With 4 pixels of padding, the two in the middle
    are inside of the image whatever the crop.
    """
    images = random_images(count, 3, size)
    images[:, 0] = np.arange(1, size + 1)[:, None]
    images[:, 1] = np.arange(1, size + 1)
    return images


def resident(images, batch_size, seed=0, test=None, **options):
    """Return a data set whose labels are the image indices."""
    labels = np.arange(len(images))
    test = images[:2] if test is None else test
    return ResidentImages(
        (images, labels), (test, np.arange(len(test))), 10_000, batch_size, seed, **options
    )


def one_epoch(data, epoch=0):
    steps = data.steps_per_epoch
    return list(data.train_batches(epoch * steps, (epoch + 1) * steps))


def offsets_and_flips(crops, padding=4):
    """Return offsets and flips of zero-padded crops of `maps`."""
    size = crops.shape[2]
    rows, columns = crops[:, 0].long(), crops[:, 1].long()
    middle, next_to_it = columns[:, size // 2, size // 2], columns[:, size // 2, size // 2 - 1]
    flips = middle < next_to_it
    from_left = torch.where(flips, size - 1 - size // 2, size // 2)
    return (
        rows[:, size // 2, size // 2] - 1 - size // 2 + padding,
        middle - 1 - from_left + padding,
        flips,
    )


def test_processes_divide_each_training_batch_and_the_other_batches():
    options = {"batch_size": 7, "padding": 2, "flip": True, "test": random_images(1700)}
    images = random_images(33)
    whole = resident(images, **options)
    shares = [resident(images, rank=rank, world_size=3, **options) for rank in range(3)]
    assert {share.steps_per_epoch for share in shares} == {whole.steps_per_epoch}
    divided = zip(*(share.train_batches(2, 9) for share in shares), strict=True)
    for batch, parts in zip(whole.train_batches(2, 9), divided, strict=True):
        for rank, part in enumerate(parts):
            assert equal([part], [[tensor[rank::3] for tensor in batch]])
    for rank, share in enumerate(shares):
        assert equal(share.test_batches(), [*whole.test_batches()][rank::3])
        for limit in (None, 4, 1):
            batches = [*whole.batchnorm_batches(1, limit)][rank::3]
            assert equal(share.batchnorm_batches(1, limit), batches)


def test_crops_and_flips_are_uniform_and_independent_per_image():
    data = resident(maps(162 * 60), 1000, padding=4, flip=True, **PIXELS)
    batches = one_epoch(data)
    rows, columns, flips = offsets_and_flips(concatenate(batches)[0])
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 8, 0, 8)
    kinds = (rows * 9 + columns) * 2 + flips
    counts = np.bincount(kinds.numpy(), minlength=162)
    assert len(counts) == 162
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    # Drawn once per batch, or once for all batches, they would be even over many images too.
    first, second = slice(1000), slice(1000, 2000)
    assert len(kinds[first].unique()) > 150
    for drawn, chance in ((rows, 1 / 9), (columns, 1 / 9), (flips, 1 / 2)):
        assert abs((drawn[first] == drawn[second]).float().mean() - chance) < 0.06


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad_value", ["mean", "zero"])
def test_a_crop_matches_torchvision_at_the_same_offset(pad_value, flip):
    mean, std = [0.3, 0.498, 0.7], [0.2, 0.25, 0.3]
    images = maps(300)
    data = resident(
        images, 300, padding=4, flip=flip, pad_value=pad_value, mean=mean, std=std, test=images
    )
    scale, shift = (torch.tensor(np.array(v) * 255, dtype=torch.float32) for v in (std, mean))
    ((crops, labels),) = data.train_batches(0, 1)
    pixels = (crops * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).round()
    rows, columns, flips = offsets_and_flips(pixels)
    assert flips.any() == flip
    fills = [round(255 * m) for m in mean] if pad_value == "mean" else [0, 0, 0]
    assert fills in ([76, 127, 178], [0, 0, 0])
    for crop, label, row, column, mirrored in zip(crops, labels, rows, columns, flips, strict=True):
        source = torch.from_numpy(images[label])
        padded = torch.cat([tv.pad(source[c : c + 1], 4, fills[c]) for c in range(3)])
        expected = tv.crop(padded, row, column, 10, 10)
        expected = tv.hflip(expected) if mirrored else expected
        expected = (expected.float() - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1)
        assert torch.equal(crop, expected)
    ((tests, _),) = data.test_batches()
    untouched = (torch.from_numpy(images).float() - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1)
    assert torch.equal(tests, untouched)
    assert (crops.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_padding_is_the_rounded_mean_of_the_training_pixels():
    images = np.zeros((2, 1, 2, 2), np.uint8)
    images[0] = 201  # mean 100.5 and, with the next line, 100.75
    images[1, 0, 0, 0] = 2
    data = resident(images, 2, padding=2)
    crops = torch.cat([data.train_batches(epoch, epoch + 1).__next__()[0] for epoch in range(20)])
    pixels = crops * data.standardise.std + data.standardise.mean
    assert set(pixels.round().long().unique().tolist()) == {0, 2, 101, 201}
    padding = crops[(pixels.round() == 101)]
    assert padding.abs().max() <= 0.5 / data.standardise.std.item()  # zero but for rounding


@pytest.mark.parametrize("first", [0, 3, 4, 7])
def test_a_batch_depends_only_on_seed_epoch_and_step(first):
    # 4 steps an epoch: the first, the last, at an epoch's end and in a later epoch.
    options = {"padding": 4, "flip": True}
    full = list(resident(random_images(50), 16, **options).train_batches(0, 11))
    assert len(full) == 11
    data = resident(random_images(50), 16, **options)
    assert equal(data.train_batches(first, 11), full[first:])
    assert equal(data.train_batches(0, first), full[:first])


def test_batches_are_independent_of_other_iterators_and_global_random_states():
    data = resident(random_images(50), 16, padding=4, flip=True)
    expected = list(data.train_batches(0, 9))
    batches = []
    for step, batch in enumerate(data.train_batches(0, 9)):
        batches.append(batch)
        torch.manual_seed(step)
        np.random.seed(step)  # noqa: NPY002
        before = torch.get_rng_state()
        list(islice(data.batchnorm_batches(epoch=step // 4), step % 3))
        list(data.test_batches())
        assert torch.equal(torch.get_rng_state(), before)
        drawn = np.random.random()  # noqa: NPY002
        assert drawn == np.random.RandomState(step).random()
    assert equal(batches, expected)


def test_batches_differ_between_seeds_epochs_and_streams():
    def drawn(batches):
        """Return order and crops separately, to compare each of them."""
        images, labels = concatenate(batches)
        order = labels.argsort()
        return labels.tolist(), [v[order].tolist() for v in offsets_and_flips(images)[:2]]

    options = {"padding": 4, "flip": True, **PIXELS}
    data, other = (resident(maps(50), 16, seed, **options) for seed in (0, 1))
    passes = [
        one_epoch(data, 0),
        one_epoch(data, 1),
        one_epoch(other, 0),
        list(data.batchnorm_batches(0)),
        list(data.batchnorm_batches(1)),
        list(other.batchnorm_batches(0)),
    ]
    orders, crops = zip(*map(drawn, passes), strict=True)
    for values in (orders, crops):
        assert all(values[i] != values[j] for i in range(6) for j in range(i))


@pytest.mark.parametrize(("count", "sizes"), [(50, [16, 16, 16, 2]), (48, [16, 16, 16])])
def test_each_epoch_visits_every_image_once_and_keeps_the_partial_batch(count, sizes):
    data = resident(random_images(count), 16, padding=1)
    assert data.steps_per_epoch == len(sizes)
    for batches in (one_epoch(data, 0), one_epoch(data, 1), list(data.batchnorm_batches(0))):
        assert [len(images) for images, _ in batches] == sizes
        labels = concatenate(batches)[1].tolist()
        assert labels != list(range(count))
        assert sorted(labels) == list(range(count))


def test_test_set_is_in_order_and_standardised_by_the_training_set():
    images, test = random_images(40) // 2, random_images(1203, seed=1)
    data = resident(images, 16, test=test, padding=4, flip=True)
    batches = list(data.test_batches())
    actual, labels = concatenate(batches)
    assert data.test_size == 1203
    assert labels.tolist() == list(range(1203))
    mean, std = (f(images.astype(float), axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(actual, (test - mean) / std, atol=1e-5)
    assert max(len(images) for images, _ in batches) <= 500


@pytest.mark.parametrize("limit", [0, 3, 9])
def test_a_limited_batchnorm_pass_is_the_start_of_the_full_pass(limit):
    data = resident(random_images(50), 16, padding=4, flip=True)
    full = list(data.batchnorm_batches(2))
    assert len(full) == 4
    assert equal(data.batchnorm_batches(2, limit=limit), full[:limit])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 51}, "batch_size=51; choices: 1 to 50"),
        ({"padding": 9}, "padding=9; choices: 0 to 8, the image size"),
        ({"pad_value": "edge"}, "pad_value='edge'; choices: mean, zero"),
        ({"mean": [0.5]}, r"mean=\[0.5\] must have 3 entries"),
        ({"mean": [0.5, 127, 0.5]}, r"mean=\[0.5, 127, 0.5\] must lie between 0 and 1, the full"),
        ({"std": [0.5, 0.5, 0]}, r"std=\[0.5, 0.5, 0\] must be positive"),
    ],
)
def test_invalid_options_are_rejected_with_field_value_and_choices(options, message):
    with pytest.raises(ValueError, match=message):
        resident(random_images(50), **{"batch_size": 16, **options})


GOOD = (random_images(4), np.arange(4))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (GOOD, (GOOD[0], np.array([0, 1, 2, 10])), "test label 10: must lie between 0 and 9"),
        ((GOOD[0], np.arange(3)), GOOD, r"training labels are \(3,\), torch.int64; .* \(4,\), int"),
        ((GOOD[0] / 255, GOOD[1]), GOOD, r"training images are \(3, 8, 8\), torch.float64; they"),
        ((GOOD[0][..., :7], GOOD[1]), GOOD, r"training images are \(3, 8, 7\), .* and square"),
        (GOOD, (random_images(4, channels=1), GOOD[1]), r"test images are \(1, 8, 8\)"),
        ((GOOD[0][:0], GOOD[1][:0]), GOOD, "there is no training image"),
    ],
)
def test_invalid_images_and_labels_are_rejected(train, test, message):
    with pytest.raises(ValueError, match=message):
        ResidentImages(train, test, 10, 2, 0)
