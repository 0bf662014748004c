"""Interface between data sets and the training loop."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")

Batch = tuple[Tensor, Tensor]
"""Images, float32 (B, C, H, W), and labels, int64 (B,), both on the device."""

Draw = tuple[Tensor, Tensor]
"""Input of a data set's `images`, (B, …), and labels, int64 (B,), both on the device."""


def count_steps(train_size: int, batch_size: int) -> int:
    """Return the number of batches in an epoch, including the last partial batch.

    Raises:
        ValueError: if `batch_size` is not between 1 and `train_size`.
    """
    if not 1 <= batch_size <= train_size:
        raise ValueError(
            f"batch_size={batch_size}; choices: 1 to {train_size}, the number of training images"
        )
    return -(-train_size // batch_size)


def first_of_each_class(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return the indices of the first images of each class, in file order.

    Args:
        labels: the class of each training image.
        fraction: the kept fraction of each class, rounded to at least one image.

    Raises:
        ValueError: if `fraction` is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"train_fraction={fraction} must be above 0 and at most 1")
    if fraction == 1:
        return np.arange(len(labels))
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    kept = [indices[: max(1, round(fraction * len(indices)))] for indices in members]
    return np.sort(np.concatenate(kept))


def across_epochs(
    epoch_batches: Callable[[int], Iterator[Item]],
    steps_per_epoch: int,
    first_step: int,
    last_step: int,
) -> Iterator[Item]:
    """Yield the batches of steps `first_step` to `last_step` − 1, epoch after epoch."""
    step = first_step
    while step < last_step:
        epoch, skipped = divmod(step, steps_per_epoch)
        for batch in islice(epoch_batches(epoch), skipped, skipped + last_step - step):
            yield batch
            step += 1


def check_batch(
    split: str,
    images: Tensor,
    labels: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    num_classes: int,
) -> None:
    """Validate the images and labels of a split for a network with `num_classes` classes.

    Images (N, C, H, W) must have `shape` (C, H, W), with H = W, and `dtype`. `split` is the name of
    the split in messages: `training` or `test`.

    Raises:
        ValueError: if there are no images, or a shape, dtype or label is invalid.
    """
    if len(images) == 0:
        raise ValueError(f"there is no {split} image")
    actual = tuple(images.shape[1:])
    if (actual, images.dtype) != (tuple(shape), dtype) or len({*shape[1:]}) != 1:
        raise ValueError(
            f"{split} images are {actual}, {images.dtype}; they must be {tuple(shape)}, {dtype}, "
            "channels first and square"
        )
    if labels.shape != images.shape[:1] or labels.dtype.is_floating_point:
        raise ValueError(
            f"{split} labels are {tuple(labels.shape)}, {labels.dtype}; they must be "
            f"({len(images)},), integers"
        )
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{split} label {low if low < 0 else high}: must lie between 0 and {num_classes - 1}, "
            f"for num_classes={num_classes}"
        )


@runtime_checkable
class DataSet(Protocol):
    """Batches that depend only on the step or the epoch.

    Two optional methods, `draws` and `images` (see `ResidentImages`), move the augmentation into
    the CUDA graph of a step. An optional function `require` on the class or function lets a sweep
    check the files before it starts.

    If several processes train together, the arguments `rank`, from 0, and `world_size` say which
    share to yield: of each training batch exactly the images `rank::world_size`, whose losses are
    weighted by their number, and of the other batches every `world_size`-th from `rank` on, so that
    test and BatchNorm passes do not depend on the number of processes. The sizes below are those of
    all processes.
    """

    num_classes: int
    channels: int  # C of the images
    image_size: int  # H = W of the images
    train_size: int  # number of training images
    test_size: int  # number of test images
    batch_size: int  # images per training batch; the last batch of an epoch may be smaller
    steps_per_epoch: int  # includes the partial batch
    device: torch.device  # device of the batches

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step` to `last_step` − 1, epoch after epoch."""
        ...

    def batchnorm_batches(self, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield one pass over the augmented training set, or its first `limit` batches."""
        ...

    def test_batches(self) -> Iterator[Batch]:
        """Yield the test set."""
        ...
