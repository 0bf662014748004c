"""Load, check and download torchvision data sets."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from phaseavg.errors import describe


def load_or_download(
    name: str, data_dir: Path | str, *splits: dict[str, Any], folder: str = ""
) -> list[Any]:
    """Return the splits of a torchvision data set; torchvision verifies MD5 checksums.

    Args:
        name: the torchvision class.
        data_dir: the data folder.
        splits: keyword arguments of the class for each split.
        folder: subfolder of `data_dir` that is the root of the data set.

    Raises:
        ValueError: if a file is missing or damaged and the download fails.
    """
    from torchvision import datasets  # the import takes a second; not all data sets need it

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
            f"({describe(error)}); copy the official files there, remove damaged files, or set "
            "another data_dir"
        ) from error
