"""Loading of miniature SVHN files, intact, damaged and missing."""

import hashlib

import numpy as np
import pytest
import scipy.io
from data.batches import PIXELS, concatenate
from torchvision.datasets import SVHN

from phaseavg.data import svhn

COUNTS = {"train": 20, "test": 6}


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """Write miniature files in the official layout and patch torchvision's checksums."""
    folder = tmp_path / "svhn"
    folder.mkdir()
    random = np.random.default_rng(0)
    contents, listed = {}, dict(SVHN.split_list)
    for split, count in COUNTS.items():
        images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        labels = np.arange(count) % 10
        path = folder / SVHN.split_list[split][1]
        in_file = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)}
        scipy.io.savemat(path, {**in_file, "y": in_file["y"][:, None].astype(np.uint8)})
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        listed[split] = ["http://127.0.0.1:9/nothing", path.name, md5]
        contents[split] = images, labels
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(SVHN, "split_list", listed)
    return tmp_path, contents


def test_images_and_labels_match_the_files(miniature):
    root, contents = miniature
    data = svhn(8, 0, root, padding=0, **PIXELS)
    assert (data.num_classes, data.channels, data.image_size) == (10, 3, 32)
    assert (data.train_size, data.test_size, data.steps_per_epoch) == (20, 6, 3)
    images, labels = concatenate(data.test_batches())
    np.testing.assert_array_equal(images, contents["test"][0])
    np.testing.assert_array_equal(labels, contents["test"][1])  # the zero is a 10 in the file
    images, labels = concatenate(data.train_batches(0, 3))
    pixels = [image.numpy().astype(np.uint8).tobytes() for image in images]
    expected = {x.tobytes(): y for x, y in zip(*contents["train"], strict=True)}
    assert dict(zip(pixels, labels.tolist(), strict=True)) == expected  # none mirrored


def test_missing_files_raise_if_the_download_fails(miniature):
    root, _ = miniature
    (root / "svhn/test_32x32.mat").unlink()
    with pytest.raises(ValueError, match=f"data_dir={root}: SVHN is missing or damaged and could"):
        svhn.require(root)
