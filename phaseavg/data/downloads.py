"""Published data sets, checked and downloaded by torchvision."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from phaseavg.errors import told


def downloaded(name: str, root: Path | str, *splits: dict[str, Any]) -> list[Any]:
    """Return the splits of a data set of torchvision, which checks files by their md5.

    Args:
        name: torchvision's class.
        root: its folder.
        splits: its arguments for each split.

    Raises:
        ValueError: if a file is missing or damaged, and cannot be downloaded.
    """
    from torchvision import datasets  # takes a second, and not every data set needs it

    def load(download: bool) -> list[Any]:
        return [getattr(datasets, name)(str(root), **split, download=download) for split in splits]

    with suppress(RuntimeError):  # a file is missing or damaged
        return load(download=False)
    try:
        return load(download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"data_dir: {name} is missing or damaged in {root} and could not be downloaded "
            f"({told(error)}); put the official files there, remove what is damaged, or name "
            "another data_dir"
        ) from error
