"""Loading and downloading of miniature CIFAR files."""

import hashlib
import pickle
import shutil

import numpy as np
import pytest
from data.batches import PIXELS
from torchvision.datasets import CIFAR10, CIFAR100

from phaseavg.data import cifar10, cifar100
from phaseavg.data.interface import first_of_each_class

LOADERS = {CIFAR10: cifar10, CIFAR100: cifar100}
CLASSES = {CIFAR10: 10, CIFAR100: 100}
TRAIN, TEST = 20, 6  # images
BOTH = pytest.mark.parametrize("source", [CIFAR10, CIFAR100])


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def contents(source):
    """Return images and labels of the training and the test set."""
    random = np.random.default_rng(0)
    return [
        (
            random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
            random.integers(0, CLASSES[source], count),
        )
        for count in (TRAIN, TEST)
    ]


def write_miniature(source, root, monkeypatch):
    """Write a miniature data set in the official layout and patch torchvision's checksums."""
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    key = "labels" if source is CIFAR10 else "fine_labels"
    for (images, labels), files in zip(contents(source), ("train_list", "test_list"), strict=True):
        names = [name for name, _ in getattr(source, files)]
        for name, part in zip(
            names, np.array_split(np.arange(len(images)), len(names)), strict=True
        ):
            rows = images[part].reshape(len(part), -1)
            entry = {"data": rows, key: labels[part].tolist(), "coarse_labels": [0] * len(part)}
            (folder / name).write_bytes(pickle.dumps(entry))
        listed = [[name, md5(folder / name)] for name in names]
        monkeypatch.setattr(source, files, listed)
    meta = folder / source.meta["filename"]
    names = [f"class {number}" for number in range(CLASSES[source])]
    meta.write_bytes(pickle.dumps({source.meta["key"]: names}))
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": md5(meta)})


def no_network(source, monkeypatch):
    """Point torchvision's download URL to a closed port."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(source, "url", f"http://127.0.0.1:9/{source.filename}")  # discards all


def assert_is_the_miniature(source, data):
    (images, labels), (test_images, test_labels) = contents(source)
    assert (data.train_size, data.test_size, data.num_classes) == (TRAIN, TEST, CLASSES[source])
    ((actual, actual_labels),) = data.test_batches()
    np.testing.assert_array_equal(actual, test_images)
    np.testing.assert_array_equal(actual_labels, test_labels)
    ((actual, actual_labels),) = data.train_batches(0, 1)
    expected = {x.tobytes(): y for x, y in zip(images, labels.tolist(), strict=True)}
    pixels = [image.numpy().astype(np.uint8).tobytes() for image in actual]
    assert dict(zip(pixels, actual_labels.tolist(), strict=True)) == expected


def load(source, data_dir, batch_size=TRAIN, **options):
    """Load raw pixels, by default the training set as a single batch."""
    return LOADERS[source](batch_size, 0, data_dir, padding=0, flip=False, **PIXELS, **options)


@BOTH
def test_images_and_labels_match_the_files(source, tmp_path, monkeypatch):
    write_miniature(source, tmp_path, monkeypatch)
    no_network(source, monkeypatch)
    assert_is_the_miniature(source, load(source, tmp_path))


@BOTH
def test_default_augmentation_matches_the_paper(source, tmp_path, monkeypatch):
    write_miniature(source, tmp_path, monkeypatch)
    data = LOADERS[source](8, 0, tmp_path)
    assert (data.image_size, data.steps_per_epoch) == (32, 3)
    assert (data.padding, data.flip) == (4, True)
    (pixels, _), _ = contents(source)
    np.testing.assert_allclose(data.standardise.mean.flatten(), pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(data.standardise.std.flatten(), pixels.std((0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta", None])
def test_damaged_or_missing_files_raise_if_the_download_fails(name, tmp_path, monkeypatch):
    write_miniature(CIFAR10, tmp_path / "data", monkeypatch)
    no_network(CIFAR10, monkeypatch)
    data_dir = tmp_path / "data" if name else tmp_path / "not" / "there"
    if name:
        (data_dir / CIFAR10.base_folder / name).write_bytes(b"damaged")
    with pytest.raises(ValueError) as error:
        cifar10.require(data_dir)
    message = str(error.value)
    assert message.startswith(f"data_dir={data_dir}: CIFAR10 is missing or damaged and could")
    assert ("Connection refused" in message) == (name != "batches.meta")
    assert "\n" not in message


@pytest.mark.parametrize("damaged", [False, True])
def test_missing_and_damaged_data_are_downloaded(damaged, tmp_path, monkeypatch):
    site, data_dir = tmp_path / "site", tmp_path / "data"
    write_miniature(CIFAR10, site, monkeypatch)
    if damaged:
        shutil.copytree(site, data_dir)
        (data_dir / CIFAR10.base_folder / CIFAR10.test_list[0][0]).write_bytes(b"damaged")

    def download(self):
        shutil.copytree(site, self.root, dirs_exist_ok=True)

    monkeypatch.setattr(CIFAR10, "download", download)
    assert_is_the_miniature(CIFAR10, load(CIFAR10, data_dir))


def test_a_fraction_keeps_the_first_images_of_each_class_in_file_order(tmp_path, monkeypatch):
    write_miniature(CIFAR10, tmp_path, monkeypatch)
    (images, labels), _ = contents(CIFAR10)
    kept = [n for n, label in enumerate(labels) if n in np.flatnonzero(labels == label)[:1]]
    fraction = 0.4 / np.bincount(labels).max()  # rounds to no image of any class; one is kept
    data = load(CIFAR10, tmp_path, 5, train_fraction=fraction)
    assert (data.train_size, data.test_size) == (len(kept), TEST)
    assert data.train_labels.tolist() == labels[kept].tolist()
    pixels, order = next(data.train_batches(0, 1))
    for image, label in zip(pixels.numpy(), order.tolist(), strict=True):
        first = next(n for n in kept if labels[n] == label)
        np.testing.assert_array_equal(image, images[first])


def test_a_fraction_is_taken_of_every_class():
    labels = np.repeat([0, 1, 2], [20, 10, 1])[::-1]
    kept = first_of_each_class(labels, 0.25)
    assert kept.tolist() == [0, 1, 2, 11, 12, 13, 14, 15]  # 2.5 rounds to even
    assert first_of_each_class(labels, 1.0).tolist() == list(range(31))
    for fraction in (0, 1.5):
        with pytest.raises(ValueError, match=f"train_fraction={fraction} must be above 0"):
            first_of_each_class(labels, fraction)
