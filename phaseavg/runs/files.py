"""Write, rename and link files atomically."""

import os
from pathlib import Path

from phaseavg.atomic import replacing
from phaseavg.errors import UserError


def write_atomically(path: Path, content: bytes, option: str | None = None) -> None:
    """Write a file atomically: readers see the old content or the new one.

    Args:
        path: the file.
        content: the new content.
        option: the option that sets the folder, for error messages.

    Raises:
        UserError: if the file cannot be written; the old file remains.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        where = f"{option}: {path}" if option else str(path)
        raise UserError(
            f"{where}: cannot be written ({error.strerror}); free disk space or set another "
            "folder, and rerun the same command to resume"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files left in a folder by killed processes."""
    for path in folder.glob(".*.[0-9]*.[0-9]*.part"):
        path.unlink(missing_ok=True)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file to `<name>.<suffix>`; return the new path.

    Raises:
        UserError: if the folder is not writable.
    """
    try:
        return path.replace(path.with_name(f"{path.name}.{suffix}"))
    except OSError as error:
        raise UserError(f"{path}: cannot be renamed to *.{suffix} ({error.strerror})") from error


def link(source: Path, target: Path) -> None:
    """Hard-link a file to a second path, or copy it if the file system has no hard links.

    An existing target is replaced, since it may be damaged.

    Raises:
        FileNotFoundError: if the file does not exist.
        UserError: if the target cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            os.link(source, temporary)
    except OSError:  # another file system, or one without hard links
        write_atomically(target, source.read_bytes())
