"""What the training loop needs of a data set, wherever its images are stored."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

Item = TypeVar("Item")

Batch = tuple[Tensor, Tensor]
"""Images, float32 (B, C, H, W), and labels, int64 (B,), both on the device."""

Draw = tuple[Tensor, Tensor]
"""What a data set makes the images of a batch from, (B, …), and labels, both on the device."""


def count_steps(train_size: int, batch_size: int) -> int:
    """Return the number of batches of an epoch, the last, partial one included.

    Raises:
        ValueError: if a batch has no images, or more than there are.
    """
    if not 1 <= batch_size <= train_size:
        raise ValueError(
            f"batch_size={batch_size}; choices: 1 to {train_size}, the training images"
        )
    return -(-train_size // batch_size)


def across_epochs(
    batches_of: Callable[[int], Iterator[Item]],
    steps_per_epoch: int,
    first_step: int,
    last_step: int,
) -> Iterator[Item]:
    """Yield the batches of steps `first_step` to `last_step` − 1; `batches_of` takes an epoch."""
    step = first_step
    while step < last_step:
        epoch, skipped = divmod(step, steps_per_epoch)
        for batch in islice(batches_of(epoch), skipped, skipped + last_step - step):
            yield batch
            step += 1


def check_batch(
    which: str,
    images: Tensor,
    labels: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    num_classes: int,
) -> None:
    """Check that images and labels are what a network for `num_classes` classes trains on.

    Images (N, C, H, W) must have a `shape` (C, H, W), with H = W, and a `dtype`. `which` names
    their split in messages: `training` or `test`.

    Raises:
        ValueError: if there is no image, or images or labels are of another shape, kind or range.
    """
    if len(images) == 0:
        raise ValueError(f"there is no {which} image")
    actual = tuple(images.shape[1:])
    if (actual, images.dtype) != (tuple(shape), dtype) or len({*shape[1:]}) != 1:
        raise ValueError(
            f"{which} images are {actual}, {images.dtype}; they must be {tuple(shape)}, {dtype}, "
            "channels first and as high as wide"
        )
    if labels.shape != images.shape[:1] or labels.dtype.is_floating_point:
        raise ValueError(
            f"{which} labels are {tuple(labels.shape)}, {labels.dtype}; they must be "
            f"({len(images)},), integers"
        )
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{which} label {low if low < 0 else high}: must lie between 0 and {num_classes - 1}, "
            f"for num_classes={num_classes}"
        )


@runtime_checkable
class DataSet(Protocol):
    """Batches that depend on the step or the epoch alone.

    A data set that makes images from something smaller may have two more methods, `draws` and
    `images`, as `ResidentImages` describes them: a CUDA graph of a step then holds that work, too.
    Its class or function may have a function `require`, by which a sweep checks files beforehand.
    """

    num_classes: int
    channels: int  # C of the images
    image_size: int  # their H = W
    train_size: int  # number of training images
    test_size: int
    batch_size: int  # images per training batch; the last batch of an epoch may have fewer
    steps_per_epoch: int  # the partial batch included
    device: torch.device  # of the batches

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step` to `last_step` − 1, epoch after epoch."""
        ...

    def batchnorm_batches(self, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield one pass over the augmented training set, or its first `limit` batches."""
        ...

    def test_batches(self) -> Iterator[Batch]:
        """Yield the test set."""
        ...
