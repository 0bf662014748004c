"""The one writer."""

import contextlib
import os
from pathlib import Path

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


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file out of the way, replacing what was set aside before; return its new path.

    Raises:
        UserError: if its folder cannot be written.
    """
    try:
        return path.replace(path.with_name(f"{path.name}.{suffix}"))
    except OSError as error:
        raise UserError(f"{path}: cannot be set aside as {suffix} ({error.strerror})") from error
