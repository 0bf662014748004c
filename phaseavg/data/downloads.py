"""Published data sets, checked and downloaded by torchvision."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from phaseavg.errors import describe


def downloaded(
    name: str, data_dir: Path | str, *splits: dict[str, Any], folder: str = ""
) -> list[Any]:
    """Return the splits of a data set of torchvision, which checks files by their md5.

    Args:
        name: torchvision's class.
        data_dir: the user's data folder.
        splits: the class's arguments for each split.
        folder: in `data_dir`, the class's root.

    Raises:
        ValueError: if a file is missing or damaged, and cannot be downloaded.
    """
    from torchvision import datasets  # takes a second, and not every data set needs it

    def load(download: bool) -> list[Any]:
        source, root = getattr(datasets, name), str(Path(data_dir, folder))
        return [source(root, **split, download=download) for split in splits]

    with suppress(RuntimeError):  # a file is missing or damaged
        return load(download=False)
    try:
        return load(download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"data_dir={data_dir}: {name} is missing or damaged and could not be downloaded "
            f"({describe(error)}); put the official files there, remove what is damaged, or name "
            "another data_dir"
        ) from error
