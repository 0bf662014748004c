"""What the training loop sees of a data set, wherever its images are kept."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Images, float32 (B, C, H, W), and labels, int64 (B,), both on the device."""

Draw = tuple[Tensor, Tensor]
"""What a data set makes the images of a batch from, (B, …), and labels, both on the device."""


def count_steps(train_size: int, batch_size: int) -> int:
    """Return the number of batches of an epoch, the last, partial one included.

    Raises:
        ValueError: if there are no images, or a batch has none, or more than there are.
    """
    if train_size < 1:
        raise ValueError("train_size=0: there are no training images")
    if not 1 <= batch_size <= train_size:
        raise ValueError(
            f"batch_size={batch_size}; choices: 1 to {train_size}, the training images"
        )
    return -(-train_size // batch_size)


def check_batch(
    which: str,
    images: Tensor,
    labels: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    num_classes: int,
) -> None:
    """Check that images and labels are what a network for `num_classes` classes trains on.

    Args:
        which: of the splits they are from: `training` or `test`.
        images: (N, C, H, W).
        labels: (N,).
        shape: (C, H, W) as it has to be, with H = W.
        dtype: of the images, as it has to be.
        num_classes: labels lie between 0 and one less.

    Raises:
        ValueError: if there is no image, or images or labels are of another shape, kind or range.
    """
    if len(images) == 0:
        raise ValueError(f"there is no {which} image")
    if (tuple(images.shape[1:]), images.dtype) != (tuple(shape), dtype) or len({*shape[1:]}) != 1:
        found, wanted = ("×".join(map(str, size)) for size in (images.shape[1:], shape))
        raise ValueError(
            f"{which} images are {found}, {images.dtype}; they must be {wanted}, {dtype}, channels "
            "first and as high as wide"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{which} labels have the shape {tuple(labels.shape)}; they must be one for each of "
            f"{len(images)} images"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{which} labels are {labels.dtype}; they must be integers")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"{which} label {wrong}: must lie between 0 and {num_classes - 1}, for "
            f"num_classes={num_classes}"
        )


@runtime_checkable
class DataSet(Protocol):
    """Batches by step and epoch, the same ones whenever they are asked for.

    A data set that makes images from something smaller may have two more methods, `draws` and
    `images`, as `ResidentImages` describes them: a CUDA graph of a step then holds that work, too.
    What makes it may have a function `require`, by which a sweep checks its files beforehand.

    Attributes:
        num_classes: number of classes.
        channels: C of the images.
        image_size: their H = W.
        train_size: number of training images.
        test_size: number of test images.
        batch_size: images per training batch; the last, partial batch of an epoch is kept.
        steps_per_epoch: batches of an epoch.
        device: where batches are.
    """

    num_classes: int
    channels: int
    image_size: int
    train_size: int
    test_size: int
    batch_size: int
    steps_per_epoch: int
    device: torch.device

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step` to `last_step` − 1, epoch after epoch."""
        ...

    def batchnorm_batches(self, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield one pass over the augmented training set, or its first `limit` batches."""
        ...

    def test_batches(self) -> Iterator[Batch]:
        """Yield the test set."""
        ...
