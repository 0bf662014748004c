"""The prepared file of a small data set: used while the official files are unchanged."""

import os

import pytest
from data.test_cifar import CIFAR100, assert_is_the_miniature, load, no_network, write_miniature

from phaseavg.data import cifar100, originals


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """Write miniature official files, and count how often they are read."""
    write_miniature(CIFAR100, tmp_path, monkeypatch)
    no_network(CIFAR100, monkeypatch)
    reads, read = [], originals._load_or_download

    def counted(*arguments):
        reads.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(originals, "_load_or_download", counted)
    return tmp_path, reads


def prepared(root):
    return root / "cifar-100-python.safetensors"


def test_the_official_files_are_read_once(miniature):
    root, reads = miniature
    for _ in range(3):
        assert_is_the_miniature(CIFAR100, load(CIFAR100, root))
    assert len(reads) == 1
    assert {path.name for path in root.iterdir()} == {"cifar-100-python", prepared(root).name}


def test_changed_official_files_are_verified_again(miniature):
    root, reads = miniature
    cifar100.require(root)
    os.utime(root / "cifar-100-python/train", (1e9, 1e9))
    assert_is_the_miniature(CIFAR100, load(CIFAR100, root))
    assert_is_the_miniature(CIFAR100, load(CIFAR100, root))
    assert len(reads) == 2
    content = bytearray((root / "cifar-100-python/test").read_bytes())
    content[-1] ^= 1
    (root / "cifar-100-python/test").write_bytes(content)
    with pytest.raises(ValueError, match="CIFAR100 is missing or damaged"):
        cifar100.require(root)


def flipped(content):
    return content[:-5000] + bytes([content[-5000] ^ 1]) + content[-4999:]


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda c: c[:7], lambda c: c[:100], lambda c: c[:-1], flipped]
)
def test_a_damaged_prepared_file_is_written_again(miniature, damage):
    root, reads = miniature
    cifar100.require(root)
    content = prepared(root).read_bytes()
    prepared(root).write_bytes(damage(content))
    leftover = root / f".{prepared(root).name}.123.part"
    leftover.write_bytes(b"of a killed process")
    assert_is_the_miniature(CIFAR100, load(CIFAR100, root))
    assert_is_the_miniature(CIFAR100, load(CIFAR100, root))
    assert len(reads) == 2
    assert not leftover.exists()


def test_a_folder_that_cannot_be_written_to_is_no_error(miniature):
    root, reads = miniature
    prepared(root).mkdir()
    for _ in range(2):
        assert_is_the_miniature(CIFAR100, load(CIFAR100, root))
    assert len(reads) == 2
    assert not list(root.glob(".*"))
