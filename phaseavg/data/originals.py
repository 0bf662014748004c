"""Load the official files of a torchvision data set, and prepare them for fast loading."""

import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from phaseavg.atomic import replacing
from phaseavg.errors import describe

Splits = list[tuple[np.ndarray, np.ndarray]]
"""Per split, images, uint8 (N, C, H, W), and labels, int64 (N,)."""


def load_splits(
    name: str, data_dir: Path | str, files: str, splits: Sequence[dict[str, Any]], root: str = ""
) -> Splits:
    """Return images and labels of the splits of a torchvision data set.

    The first call verifies the MD5 checksums of the official files, and saves the images as
    `<data_dir>/<files>.safetensors`. Later calls map this file into memory if its CRC-32 is right,
    and names, sizes and modification times of the official files are the same.

    Args:
        name: the torchvision class.
        data_dir: the data folder.
        files: the folder of the official files in `data_dir`.
        splits: keyword arguments of the class for each split.
        root: the folder in `data_dir` that torchvision calls root.

    Raises:
        ValueError: if a file is missing or damaged and the download fails.
    """
    originals = Path(data_dir, files)
    prepared = originals.with_suffix(".safetensors")
    if loaded := read_prepared(prepared, folder_stamp(originals)):
        return loaded
    loaded = [_arrays(split) for split in _load_or_download(name, data_dir, splits, root)]
    with suppress(OSError):  # a read-only folder, or a full disk
        write_prepared(prepared, folder_stamp(originals), loaded)
    return loaded


def folder_stamp(folder: Path) -> str:
    """Return names, sizes and modification times of the files in a folder as JSON."""
    stats = {path.name: path.stat() for path in sorted(folder.glob("*")) if path.exists()}
    return json.dumps({name: [s.st_size, s.st_mtime_ns] for name, s in stats.items()})


def read_prepared(path: Path, stamp: str) -> Splits:
    """Return the arrays of a prepared file; [] if it is missing, damaged or has another stamp."""
    with suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("originals") == stamp:
            arrays = {name: file.get_tensor(name).numpy() for name in sorted(file.keys())}
            if metadata["crc32"] == _checksum(arrays):
                splits = range(len(arrays) // 2)
                return [(arrays[f"images{n}"], arrays[f"labels{n}"]) for n in splits]
    return []


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].data, crc)
    return str(crc)


def write_prepared(path: Path, stamp: str, splits: Splits) -> None:
    """Write a prepared file atomically.

    Raises:
        OSError: if it cannot be written.
    """
    for leftover in path.parent.glob(f".{path.name}.*.part"):  # of a killed process
        leftover.unlink(missing_ok=True)
    arrays = {f"images{n}": images for n, (images, _) in enumerate(splits)}
    arrays |= {f"labels{n}": labels for n, (_, labels) in enumerate(splits)}
    content = save(arrays, {"originals": stamp, "crc32": _checksum(arrays)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _arrays(split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return images, channels first, and labels of a torchvision data set."""
    images = split.data if split.data.shape[1] == 3 else split.data.transpose(0, 3, 1, 2)
    labels = split.labels if hasattr(split, "labels") else split.targets
    return np.ascontiguousarray(images), np.asarray(labels, np.int64)


def _load_or_download(
    name: str, data_dir: Path | str, splits: Sequence[dict[str, Any]], root: str
) -> list[Any]:
    from torchvision import datasets  # the import takes a second, and is rarely needed

    def load(download: bool) -> list[Any]:
        source, folder = getattr(datasets, name), str(Path(data_dir, root))
        return [source(folder, **split, download=download) for split in splits]

    with suppress(RuntimeError):  # a file is missing or damaged
        return load(download=False)
    try:
        return load(download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"data_dir={data_dir}: {name} is missing or damaged and could not be downloaded "
            f"({describe(error)}); copy the official files there, remove damaged files, or set "
            "another data_dir"
        ) from error
