"""The images of a split: files in a folder per class, or samples in tar shards."""

import io
import os
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from phaseavg.data.interface import first_of_each_class
from phaseavg.data.originals import folder_stamp, read_prepared, write_prepared
from phaseavg.errors import UserError, describe
from phaseavg.processes import on_first
from phaseavg.randomness import seed_for

Key = tuple[str, int]
"""Random stream for the augmentation of an image, and index of the image."""


class Index(NamedTuple):
    """Where the N images of a split are."""

    files: np.ndarray  # paths as bytes
    places: np.ndarray  # (N, 3): number of the file, first byte, and bytes; -1: to the end
    labels: np.ndarray  # (N,), from 0
    classes: list[str]


def has_images(folder: Path) -> bool:
    """Return whether a folder has subfolders or shards; they are not read."""
    return any(folder.glob("*.tar")) or any(folder.glob("*/"))


def has_shards(folder: Path) -> bool:
    """Return whether a folder has shards; beside class folders, a .tar file is no shard."""
    return any(folder.glob("*.tar")) and not any(folder.glob("[!.]*/"))


def class_folders(data_dir: Path, split: str) -> Index:
    """Return the images of `data_dir / split`, in a folder per class as torchvision reads them.

    Raises:
        ValueError: if there are no class folders, or a class folder has no images.
    """
    from torchvision.datasets import ImageFolder

    try:
        source = ImageFolder(str(data_dir / split))
    except OSError as error:
        raise ValueError(
            f"data_dir={data_dir}: {split} must hold a folder of images per class or tar shards "
            f"({str(error).split('. Supported')[0]})"
        ) from error
    files = np.array([os.fsencode(path) for path, _ in source.samples])
    places = np.column_stack(np.broadcast_arrays(np.arange(len(files)), 0, -1))
    return Index(files, places, np.array(source.targets), source.classes)


def shards(data_dir: Path, split: str) -> Index:
    """Return the images in the shards `data_dir / split / *.tar`, in WebDataset's layout.

    A sample is an image `NAME.jpg`, `NAME.jpeg` or `NAME.png`, and `NAME.cls`, the number of its
    class as text. The first call reads the headers in all shards and saves the images' places as
    `<split>.safetensors`; later calls read this file while sizes and times of the shards are equal.

    Raises:
        ValueError: if a shard is damaged, or a sample has no class or not one image.
    """
    paths = sorted((data_dir / split).glob("*.tar"))
    places, labels = _places(data_dir / split, paths)
    classes = np.unique(labels)
    if len(classes) == 0 or not np.array_equal(classes, np.arange(len(classes))):
        raise ValueError(
            f"data_dir={data_dir}: {split} has the classes {classes.tolist()}; they must be 0, 1, …"
        )
    files = np.array([os.fsencode(path) for path in paths])
    return Index(files, places, labels, [str(label) for label in classes])


@on_first
def _places(folder: Path, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the places and classes of the images in the shards of a folder."""
    prepared, stamp = folder.with_suffix(".safetensors"), folder_stamp(folder)
    if known := read_prepared(prepared, stamp):
        return known[0]
    samples = [(number, *sample) for number, path in enumerate(paths) for sample in _samples(path)]
    table = np.array(samples, np.int64).reshape(-1, 4)
    places, labels = (np.ascontiguousarray(part) for part in (table[:, :3], table[:, 3]))
    with suppress(OSError):  # a read-only folder, or a full disk
        write_prepared(prepared, stamp, [(places, labels)])
    return places, labels


def _samples(path: Path) -> list[tuple[int, int, int]]:
    """Return the first byte, the number of bytes and the class of each image in a shard."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            for member in shard:
                name, _, suffix = member.name.rpartition(".")
                if suffix.lower() in ("jpg", "jpeg", "png") and member.isreg():
                    if name in images:
                        raise ValueError(f"two images are named {name}")
                    images[name] = member.offset_data, member.size
                elif suffix == "cls" and (text := shard.extractfile(member)):
                    labels[name] = int(text.read())
            # tarfile takes a damaged header, or the end of the file, for the end of the shard.
            file.seek(shard.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"it ends at byte {shard.offset} without a mark")
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({describe(error)}); replace the file") from error
    if incomplete := images.keys() ^ labels.keys():
        raise ValueError(f"{path}: {min(incomplete)} must have an image and a .cls file")
    return [(*place, labels[name]) for name, place in images.items()]


class ImageFiles(Dataset):
    """The images in `data_dir / split`, read and augmented in worker processes.

    `fraction` keeps the first images of each class (`first_of_each_class`). `transform` maps a PIL
    image to a uint8 tensor (C, H, W), with torch's global generator.

    Raises:
        ValueError: if the images are missing or damaged; see `class_folders` and `shards`.
    """

    def __init__(
        self,
        data_dir: Path,
        split: str,
        transform: Callable[[Any], Tensor],
        seed: int,
        fraction: float = 1.0,
    ) -> None:
        index = shards if has_shards(data_dir / split) else class_folders
        # Arrays instead of lists: reading a Python object changes its reference count, so that each
        # forked worker would copy the memory of a list.
        self.files, places, labels, self.classes = index(data_dir, split)
        kept = first_of_each_class(labels, fraction)
        self.places, self.labels = places[kept], labels[kept]
        self.transform, self.seed = transform, seed

    def __len__(self) -> int:
        return len(self.labels)

    def place(self, index: int) -> tuple[str, int, int]:
        """Return the file of an image, its first byte, and its bytes; -1: to the end."""
        number, first, size = self.places[index].tolist()
        return os.fsdecode(self.files[number]), first, size

    def read(self, index: int) -> Any:
        """Decode an image, as RGB."""
        from PIL import Image  # small data sets do not need it

        path, first, size = self.place(index)
        with open(path, "rb") as file:  # noqa: PTH123 -- as fast as possible
            file.seek(first)
            return Image.open(io.BytesIO(file.read(size))).convert("RGB")

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | UserError:
        stream, index = key
        try:
            image = self.read(index)
        except Exception as error:  # Pillow raises many types
            path, first, size = self.place(index)
            where = f", image at byte {first}," * (size >= 0)
            # Returned, because DataLoader turns a worker's exception into a long traceback text.
            return UserError(
                f"{path}{where} cannot be read ({describe(error)}); replace the file and rerun the "
                "same command to resume"
            )
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed also formats a stack trace for CUDA, which takes 10 % of the time.
            torch.default_generator.manual_seed(seed_for(self.seed, stream, index))
            return self.transform(image), int(self.labels[index])
