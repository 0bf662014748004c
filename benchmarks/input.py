"""Time our training batches against torchvision's transforms in a DataLoader, on the CPU.

    python -m benchmarks.input

Images of 32×32 pixels are padded by 4 pixels, cropped at random, flipped and standardised; ours are
tensors in memory, torchvision's are PIL images. JPEG files of 500×375 pixels are decoded, cropped
to 224 pixels, flipped and standardised. All images are noise. All times are CPU seconds for an
epoch of batches, including worker processes.
"""

import sys
import tarfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ToTensor,
)

from benchmarks import common
from phaseavg.cli import one_line_errors
from phaseavg.data import DataSet, ImageNet
from phaseavg.data.imagenet import MEAN, STD
from phaseavg.training.parts import load_data

BATCH = 128
PADDING = 4
WORKERS = (0, 2)
OURS = "ours"


def channel_statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each channel's mean and standard deviation, for uint8 (N, H, W, C) scaled to 0…1."""
    return pixels.mean((0, 1, 2)) / 255, pixels.std((0, 1, 2)) / 255


def cifar_transforms(mean: np.ndarray, std: np.ndarray) -> Compose:
    """Return torchvision's transforms; padding is the rounded channel mean, as in our pipeline."""
    fill = tuple(np.rint(255 * mean).astype(int).tolist())
    crop = RandomCrop(32, padding=PADDING, fill=fill)
    return Compose([crop, RandomHorizontalFlip(), ToTensor(), Normalize(mean, std)])


def consume(batches: Iterable[object]) -> None:
    """Iterate over all batches and discard them."""
    for _ in batches:
        pass


def time_our_epoch(data: DataSet) -> float:
    """Return the CPU seconds of an epoch of our training batches."""
    return common.time_cpu(lambda: consume(data.train_batches(0, data.steps_per_epoch)))


def time_loader_epoch(make_loader: Callable[[], DataLoader]) -> float:
    """Return the CPU seconds of an epoch of a new DataLoader, including its workers."""
    return common.time_cpu(lambda: consume(make_loader()))


def cifar_timers(images: common.Images, data: DataSet) -> dict[str, Callable[[], float]]:
    """Return a timing function for each pipeline of images in memory, by its name."""
    pixels, _ = images
    pictures = common.Pictures(images, cifar_transforms(*channel_statistics(pixels)))
    timers = {OURS: partial(time_our_epoch, data)}
    for workers in WORKERS:
        loader = partial(DataLoader, pictures, BATCH, shuffle=True, num_workers=workers)
        timers[f"torchvision, {workers} workers"] = partial(time_loader_epoch, loader)
    return timers


def file_timers(folder: Path, count: int) -> dict[str, Callable[[], float]]:
    """Write JPEG files of 500×375 pixels; return a timing function for each pipeline, by name.

    Args:
        folder: the output folder.
        count: the number of training images, in two classes.
    """
    random = np.random.default_rng(0)
    for number in range(count + 2):  # `ImageNet` needs two test images as well, one per class
        path = folder / ("val" if number < 2 else "train") / f"{number % 2}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Upscaled noise, as pixel noise would give much larger files than photographs.
        coarse = random.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    for split in ("train", "val"):  # the same images as shards
        shard = folder.with_name("shards") / split / "0000.tar"
        shard.parent.mkdir(parents=True)
        with tarfile.open(shard, "w") as tar:
            for path in sorted((folder / split).rglob("*.JPEG")):
                tar.add(path, f"{path.stem}.jpeg")
                label = path.with_suffix(".cls")
                label.write_text(path.parent.name)
                tar.add(label, label.name)
    batch = min(32, count)
    options = {"seed": 0, "data_dir": folder.parent, "workers": 0}
    data = ImageNet(batch, folder=folder.name, **options)
    in_shards = ImageNet(batch, folder="shards", **options)
    steps = [RandomResizedCrop(224), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)]
    files = ImageFolder(str(folder / "train"), Compose(steps))
    loader = partial(DataLoader, files, batch, shuffle=True)
    return {
        OURS: partial(time_our_epoch, data),
        "torchvision, 0 workers": partial(time_loader_epoch, loader),
        "ours, in tar shards": partial(time_our_epoch, in_shards),
    }


@one_line_errors
def main() -> int:
    """Time the pipelines, print the table and append the results to the file."""
    parser = common.make_parser("input", __doc__.splitlines()[0], rounds=5, seconds=60)
    parser.add_argument("--images", type=common.positive, default=10_000, help="training images")
    parser.add_argument("--files", type=int, default=256, help="image files; 0 skips this part")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = common.noise(options.images)
    settings = common.make_settings(*common.noise_overrides(options.images))
    limits = options.rounds, options.seconds
    timers = cifar_timers(images, load_data(settings, common.CPU))
    times = {f"{options.images} images in memory": common.time_rounds(timers, *limits)}
    if options.files:
        with TemporaryDirectory() as folder:
            timers = file_timers(Path(folder, "images"), options.files)
            common.time_rounds(timers, rounds=1, seconds=0)  # read the files once
            times[f"{options.files} image files"] = common.time_rounds(timers, *limits)
    rows = [
        common.row(workload, peer, seconds[peer], OURS, seconds[OURS])
        for workload, seconds in times.items()
        for peer in seconds.columns.drop(OURS)
    ]
    common.report(options, common.CPU, rows, times)
    return 0


if __name__ == "__main__":
    sys.exit(main())
