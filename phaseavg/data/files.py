"""Published files: checked against their md5, downloaded if they are not there."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def require_files(
    data_dir: Path, folder: str, files: Mapping[str, str], download: Callable[[], Any]
) -> None:
    """Check every file; download what is missing.

    Args:
        data_dir: the user's, which the message names.
        folder: in it, where the files are.
        files: name and published md5 of each.
        download: fetches them all; raises OSError or RuntimeError if it cannot.

    Raises:
        ValueError: if a file is damaged, or missing and not to be had.
    """
    place = data_dir / folder
    missing = [name for name in files if not (place / name).is_file()]
    damaged = [
        name for name, md5 in files.items() if name not in missing and _md5(place / name) != md5
    ]
    if damaged:
        raise ValueError(
            f"data_dir={data_dir}: {folder}/{damaged[0]} is damaged (its md5 is not "
            "the published one); remove it to have it downloaded again, or name another data_dir"
        )
    if missing:
        try:
            download()
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"data_dir={data_dir}: {folder}/{missing[0]} is missing and could not "
                f"be downloaded ({error}); put the official files there or name another data_dir"
            ) from error
