"""Augmented batches beside torchvision's: `python -m benchmarks.input --data-dir FOLDER`.

An epoch of training batches, cropped at random from a frame of 4 pixels, flipped and standardised:
ours, and those of torchvision's transforms on PIL images behind torch's DataLoader, in this process
and in two workers. What counts is the processor's time, of workers too. A round takes each once, in
an order that turns from round to round.

Before time is taken, both have to make the same images: each of ours is the one that torchvision's
functions make of the same original with some offset and flip.
"""

import sys
from argparse import Namespace
from functools import partial

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import DataLoader
from torchvision.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    ToTensor,
    functional,
)

from benchmarks.common import (
    CPU,
    Goal,
    add_rounds,
    cell,
    mistaken,
    parser_of,
    processor_seconds_of,
    repeated,
    report,
    settings_of,
    turned,
)
from benchmarks.images import (
    Pictures,
    add_images,
    in_words,
    overrides_of,
    training_images,
)
from phaseavg.data import ResidentImages
from phaseavg.errors import UserError
from phaseavg.training.parts import load_data

GOAL = 20  # times as fast, for a core, without workers
BATCH = 128
PADDING = 4
WORKERS = (0, 2)
OURS = "ours"
CHECKED = 128  # images, each in all its crops and flips


def peer(workers: int) -> str:
    """Return what torchvision's pipeline is called."""
    return f"torchvision, {workers} workers"


def statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of the channels of uint8 images (N, H, W, C), between 0 and 1."""
    return images.mean((0, 1, 2)) / 255, images.std((0, 1, 2)) / 255


def transforms(mean: np.ndarray, std: np.ndarray) -> Compose:
    """Return torchvision's pipeline; around an image is the rounded mean, as ours has it."""
    fill = tuple(np.rint(255 * mean).astype(int).tolist())
    return Compose(
        [
            RandomCrop(32, padding=PADDING, fill=fill),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(mean.tolist(), std.tolist()),
        ]
    )


def require_same(images: np.ndarray, labels: list[int]) -> None:
    """Make sure that our images are those of torchvision, given the same offsets and flips.

    Args:
        images: uint8 (N, 32, 32, 3).
        labels: N of them.

    Raises:
        AssertionError: if an image of ours, in uint8, is none of those that torchvision makes with
            any offset and flip, if an original is missing or has another label, or if the
            standardised numbers differ by more than rounding.
    """
    images, labels = images[:CHECKED], labels[:CHECKED]
    mean, std = statistics(images)
    train = np.ascontiguousarray(images.transpose(0, 3, 1, 2)), np.asarray(labels)
    ours = ResidentImages(train, train, 1 + max(labels), len(images), 0, PADDING, flip=True)
    (standardised, found_labels), *_ = ours.train_batches(0, 1)

    crop, _, to_tensor, normalize = transforms(mean, std).transforms
    made: dict[bytes, int] = {}
    for number, image in enumerate(images):
        framed = functional.pad(Image.fromarray(image), PADDING, crop.fill)
        for top in range(2 * PADDING + 1):
            for left in range(2 * PADDING + 1):
                cropped = functional.crop(framed, top, left, 32, 32)
                for one in (cropped, functional.hflip(cropped)):
                    made[np.asarray(one).tobytes()] = number

    scale, shift = (torch.as_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (std, mean))
    levels = (standardised * scale + shift).mul(255).round().to(torch.uint8)
    pixels = levels.permute(0, 2, 3, 1).contiguous().numpy()
    originals = [made.get(image.tobytes(), -1) for image in pixels]
    if sorted(originals) != list(range(len(images))):
        raise AssertionError("our images are not those that torchvision makes of the same ones")
    assert_close(found_labels, torch.tensor([labels[number] for number in originals]))
    theirs = torch.stack([normalize(to_tensor(Image.fromarray(image))) for image in pixels])
    assert_close(standardised, theirs, rtol=1e-4, atol=1e-4)


def measure(images: np.ndarray, labels: list[int], arguments: Namespace) -> pd.DataFrame:
    """Return the processor's seconds of an epoch of each, a row for each round."""
    settings = settings_of("cnn13", 1.0, *overrides_of(arguments.data_dir, arguments.images))
    data = load_data(settings, CPU)
    pictures = Pictures(images, labels, transforms(*statistics(images)))

    def ours(number: int) -> None:
        steps = data.steps_per_epoch
        for _ in data.train_batches(number * steps, (number + 1) * steps):
            pass

    def torchvisions(workers: int, _: int) -> None:
        for _ in DataLoader(pictures, BATCH, shuffle=True, num_workers=workers):
            pass

    ways = {OURS: ours, **{peer(workers): partial(torchvisions, workers) for workers in WORKERS}}

    def one_round(number: int) -> dict[str, float]:
        names = turned(list(ways), number)
        return {name: processor_seconds_of(partial(ways[name], number)) for name in names}

    return repeated(one_round, arguments.rounds, arguments.seconds)[list(ways)]


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = parser_of("input")
    add_rounds(parser, rounds=5, seconds=60, each="all")
    add_images(parser, default=10_000)
    return parser.parse_args()


def main() -> int:
    """Compare, measure and report."""
    arguments = parsed()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        images, labels = training_images(arguments.data_dir, arguments.images)
        require_same(images, labels)
        seconds = measure(images, labels, arguments)
    except UserError as error:
        return mistaken("input", error)
    faster = {peer(n): seconds[peer(n)] / seconds[OURS] for n in WORKERS}
    rows = [
        {
            "an epoch of batches": name,
            "processor's seconds": cell(seconds[name]),
            "images/s of a core": cell(len(labels) / seconds[name]),
            "ours, times as fast": cell(faster[name]) if name in faster else "",
        }
        for name in seconds
    ]
    goals = [
        Goal(
            "augmented batches, for a core",
            name,
            f"{cell(ratio)} times as fast",
            f"at least {GOAL}" if name == peer(0) else "",
            bool(ratio.min() >= GOAL) if name == peer(0) else None,
        )
        for name, ratio in faster.items()
    ]
    how = (
        f"{in_words(arguments.data_dir, arguments.images)}, in batches of {BATCH}: cropped at "
        f"random from a frame of {PADDING} pixels, flipped, standardised. Torchvision's are "
        "RandomCrop, RandomHorizontalFlip, ToTensor and Normalize on PIL images, behind torch's "
        "DataLoader. Counted is the processor's time, of workers too, from their start to their "
        f"end. {len(seconds)} rounds; ratios are taken within a round. Before, each of "
        f"{min(CHECKED, len(labels))} images of ours was found, bit by bit, among those that "
        "torchvision's functions make of its original."
    )
    report("input", arguments.output, CPU, how, goals, {"An epoch:": rows}, {"epoch": seconds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
