"""The one writer, and what else is done with files."""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from phaseavg.errors import UserError


def write_atomically(path: Path, content: bytes, place: str | None = None) -> None:
    """Write `content` to `path`: whoever looks finds the old file or the new one, whole.

    Args:
        path: of the file.
        content: of the file.
        place: what the user set to have it there; by default the runs_dir of a run's folder.

    Raises:
        UserError: if it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        place = place or f"runs_dir={path.parent.parent}"
        raise UserError(
            f"{place}: {path.parent.name}/{path.name} could not be written ({error.strerror}); "
            "make room or name another folder, and the same command goes on"
        ) from error


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove from a folder what killed writes to some files have left.

    Args:
        folder: of the files; it need not be there.
        names: regular expression of the files' names.
    """
    part = re.compile(rf"\.({names})\.\d+(\.\d+)?\.part")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in folder.iterdir():
            if part.fullmatch(path.name):
                path.unlink(missing_ok=True)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file out of the way, replacing what was set aside before; return its new path.

    Raises:
        UserError: if its folder cannot be written.
    """
    try:
        return path.replace(path.with_name(f"{path.name}.{suffix}"))
    except OSError as error:
        raise UserError(f"{path}: cannot be set aside as {suffix} ({error.strerror})") from error


def link(source: Path, target: Path, place: str, anew: bool = False) -> None:
    """Have a file at a second path: as one file on the same disk, else as a copy.

    Args:
        source: where it is.
        target: where else it is to be.
        place: what the user set to have it there.
        anew: whether what is there already is to be replaced, for it may be damaged.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if anew:
            target.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(source, target)
    except OSError:  # another disk, or one that has no such links
        write_atomically(target, source.read_bytes(), place)


def checksum(content: bytes) -> str:
    """Return what the name of a file says of its content: 16 digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a file; an empty one if there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
