"""Reading and writing files that others may have damaged, swapped, or be writing too."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from phaseavg.errors import UserError

MEGABYTE = 2**20

LIMIT = 64 * MEGABYTE
"""The most bytes that a file of a record may have; real ones have a hundredth."""

YAML_LIMIT, YAML_DEPTH = MEGABYTE, 50
"""The same of a YAML file, and how deep its lists and mappings may be nested."""


def read_file(path: Path, limit: int | None = LIMIT) -> bytes:
    """Return the content of a regular file; a pipe or a device in its place never blocks.

    Args:
        path: of the file.
        limit: the most bytes that it may have; None: any number.

    Raises:
        OSError: if the file cannot be read or is no regular file.
        ValueError: if it is too large.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    with path.open("rb") as file:
        content = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(content) > limit:
        raise ValueError(f"{path.name} has more than {limit // MEGABYTE} MB")
    return content


def load_json(content: bytes | str) -> Any:
    """Return the value that JSON text stands for.

    Raises:
        ValueError: if it is no JSON, or nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error


class _WithoutAliases(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
    def ignore_aliases(self, data: Any) -> bool:
        """Write every value in full: `load_yaml` refuses aliases."""
        return True


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def dump_yaml(values: Mapping[str, Any]) -> bytes:
    """Return values as YAML text that `load_yaml` reads."""
    return yaml.dump(dict(values), Dumper=_WithoutAliases, sort_keys=False).encode()


def load_yaml(content: bytes | str) -> Any:
    """Return the value that YAML text stands for: plain data, without aliases.

    Raises:
        ValueError: if it is no such YAML, too long, or nested too deep.
    """
    if len(content) > YAML_LIMIT:
        raise ValueError(f"YAML of more than {YAML_LIMIT // MEGABYTE} MB")
    try:
        depth = 0
        for event in yaml.parse(content, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"YAML with an alias (*{event.anchor})")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > YAML_DEPTH:
                raise ValueError("YAML that is nested too deep")
        return yaml.load(content, Loader=_Loader)  # noqa: S506 -- it is safe
    except (yaml.YAMLError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"no YAML of plain data ({' '.join(str(error).split())})") from error


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
            "make room or name another folder, and rerun the same command to resume"
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
