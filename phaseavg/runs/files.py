"""Write files whole or not at all."""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from phaseavg.errors import UserError


class _WithoutAliases(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_yaml(values: Mapping[str, Any]) -> bytes:
    """Return values as YAML text, with every value in full."""
    return yaml.dump(dict(values), Dumper=_WithoutAliases, sort_keys=False).encode()


def write_atomically(path: Path, content: bytes, place: str | None = None) -> None:
    """Write a file atomically: readers see the old content or the new one.

    Args:
        path: of the file.
        content: of the file.
        place: the option that names its folder; by default `runs_dir`.

    Raises:
        UserError: if it cannot be written; the old file remains.
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
            "make room or name another folder, and rerun the same command to resume"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder, if it exists."""
    for path in folder.glob(".*.part"):
        if re.fullmatch(r"\..+\.\d+(\.\d+)?\.part", path.name):
            path.unlink(missing_ok=True)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file to `<name>.<suffix>`; return the new path.

    Raises:
        UserError: if its folder cannot be written.
    """
    try:
        return path.replace(path.with_name(f"{path.name}.{suffix}"))
    except OSError as error:
        raise UserError(f"{path}: cannot be set aside as {suffix} ({error.strerror})") from error


def link(source: Path, target: Path, place: str, anew: bool = False) -> None:
    """Link a file to a second path; on another disk, copy it.

    Args:
        source: the file.
        target: the second path.
        place: the option that names its folder.
        anew: whether an existing file, which may be damaged, is replaced.

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
    """Return 16 digits of the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()[:16]
