"""Snapshots: files that hold a network's weights at one moment, by parameter name.

Any PyTorch program reads one with `torch.load(path)`, and `model.load_state_dict` takes it.
"""

import hashlib
import io
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a snapshot; the tensors are copied to the CPU."""
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    buffer = io.BytesIO()
    torch.save(copies, buffer)
    return buffer.getvalue()


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a snapshot, mapped into memory: only what is used is read."""
    tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return tensors


def write_with_checksum(folder: Path, stem: str, content: bytes) -> str:
    """Write a file, whole or not at all; return its name, `<stem>-<checksum>.pt`.

    Raises:
        OSError: if it cannot be written; it names the file.
    """
    path = folder / f"{stem}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    # Another process or thread may be writing the same.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a write's own does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path.name


def is_intact(path: Path) -> bool:
    """Return whether a file exists and has the content whose checksum is in its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stem.rpartition("-")[2] == digest[:16]
