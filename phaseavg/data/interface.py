"""What the training loop sees of a data set, wherever its images are kept."""

from collections.abc import Iterator
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
        ValueError: if a batch has no image, or more than there are.
    """
    if not 1 <= batch_size <= train_size:
        raise ValueError(
            f"batch_size={batch_size}; choices: 1 to {train_size}, the training images"
        )
    return -(-train_size // batch_size)


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
