"""Read and write snapshots: files that hold a network's weights by parameter name.

`model.load_state_dict(torch.load(path), strict=False)` reads a snapshot.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from phaseavg.atomic import checksum, replacing


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise tensors to the content of a snapshot; the tensors are copied to the CPU."""
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    buffer = io.BytesIO()
    torch.save(copies, buffer)
    return buffer.getvalue()


def read(path: Path) -> dict[str, Tensor]:
    """Return the memory-mapped tensors of a snapshot; data is read from disk on access."""
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return tensors


def write_with_checksum(folder: Path, stem: str, content: bytes) -> str:
    """Write a file atomically; return its name, `<stem>-<checksum>.pt`.

    Raises:
        OSError: if the file cannot be written; the error names the file.
    """
    path = folder / f"{stem}-{checksum(content)}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:  # an OSError from write() does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path.name


def is_intact(path: Path) -> bool:
    """Return whether a file exists and its content matches the checksum in its name."""
    return path.is_file() and path.stem.rpartition("-")[2] == checksum(path.read_bytes())
