"""Where the weights of past epochs are kept: in memory or in files.

A snapshot is all parameters of a network as one vector. A store hands out a reference to each that
it keeps, the vector itself or a file's name, and reads pieces of it. References are what a
checkpoint holds.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


class MemoryStore:
    """Snapshots as vectors on a device.

    Args:
        device: where they are kept.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def put(self, vector: Tensor, t: int) -> Tensor:
        """Keep a vector that nobody else will change; return the reference to it."""
        return vector.to(self.device)

    def restore(self, snapshot: Tensor | str, t: int) -> Tensor:
        """Return a reference for what a state holds.

        Raises:
            ValueError: if the state holds a file's name.
        """
        if isinstance(snapshot, str):
            raise ValueError(
                f"the snapshots of this state are files ({snapshot}), and here they would be kept "
                "in memory: name the folder that holds them"
            )
        return self.put(snapshot, t)

    def piece(self, snapshot: Tensor, first: int, last: int) -> Tensor:
        """Return the entries `first` to `last` − 1 of a snapshot."""
        return snapshot[first:last]

    def files(self, snapshots: Iterable[Tensor]) -> list[Path]:
        """Return the files that references stand for: none."""
        return []

    def __str__(self) -> str:
        return str(self.device)


class FileStore:
    """Snapshots as files `snapshot-<t>-<checksum>.bin`, each written once and never changed.

    A file holds the vector's bytes in the machine's own order. Nothing here deletes one.

    Args:
        folder: where they are kept; it is made when the first one comes.
        dtype: of the vectors.
    """

    device = torch.device("cpu")  # where vectors are on their way to and from a file

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self.dtype = dtype

    def put(self, vector: Tensor, t: int) -> str:
        """Write a vector to a file, whole or not at all; return the file's name.

        Args:
            vector: what to write.
            t: epoch of the window, for the name.

        Raises:
            OSError: if it cannot be written; it names the file.
        """
        content = vector.cpu().numpy()
        name = f"snapshot-{t:04d}-{hashlib.sha256(content).hexdigest()[:16]}.bin"
        self.folder.mkdir(parents=True, exist_ok=True)
        # Of this store alone: another one, of another process too, may be writing the same.
        temporary = self.folder / f".{name}.{os.getpid()}.{id(self)}.part"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / name)
        except OSError as error:  # a write's own does not say of which file
            raise OSError(error.errno, error.strerror, str(self.folder / name)) from error
        finally:
            temporary.unlink(missing_ok=True)
        return name

    def restore(self, snapshot: Tensor | str, t: int) -> str:
        """Return a reference for what a state holds; a vector is written to a file.

        Raises:
            ValueError: if a file is missing or damaged.
        """
        if not isinstance(snapshot, str):
            return self.put(snapshot, t)
        path = self.folder / snapshot
        if not checksum_matches(path):
            raise ValueError(f"{path} is missing or damaged")
        return snapshot

    def piece(self, snapshot: str, first: int, last: int) -> Tensor:
        """Return the entries `first` to `last` − 1 of a snapshot.

        Read and not mapped: mapped pages would count as memory of the process.

        Raises:
            OSError: if the file is missing, unreadable or too short.
        """
        path = self.folder / snapshot
        values = torch.empty(last - first, dtype=self.dtype)
        with path.open("rb") as file:
            file.seek(first * values.itemsize)
            if file.readinto(values.numpy()) != values.nbytes:
                raise OSError(f"{path} is shorter than what was written to it")
        return values

    def files(self, snapshots: Iterable[str]) -> list[Path]:
        """Return the files that references stand for."""
        return [self.folder / name for name in snapshots]

    def __str__(self) -> str:
        return f"files in {self.folder}"


def checksum_matches(path: Path) -> bool:
    """Tell whether a snapshot's file is there and still holds the bytes that its name tells of."""
    if not path.is_file():  # a pipe in its place would never end
        return False
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stem.rpartition("-")[2] == digest[:16]
