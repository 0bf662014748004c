"""Small data sets that live on the device as one uint8 tensor, augmented batch by batch."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from phaseavg.data.interface import Batch, Draw, across_epochs, check_batch, count_steps
from phaseavg.data.standardise import Standardise
from phaseavg.randomness import generator

PadValue = Literal["mean", "zero"]

TEST_BATCH = 500  # images; any number gives the same errors


def _pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of each channel of uint8 images (N, C, H, W), in units of 255.

    From the counts of the 256 levels: exact, and without a float copy of the images.
    """
    levels = np.arange(256)
    channels = images.swapaxes(0, 1)
    counts = [np.bincount(pixels.ravel(), minlength=256) for pixels in channels]
    share = np.array(counts) / channels[0].size
    mean = share @ levels
    deviation = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    return mean / 255, deviation / 255


class ResidentImages:
    """Standardised images, cropped at random from a padded frame and flipped, batch by batch.

    A batch depends on (seed, stream, epoch, position) alone: order, crops and flips of an epoch are
    drawn together, on the CPU, from a generator keyed by them, and are the same on every device.

    Args:
        train: training images, uint8 (N, C, H, W), and labels, (N,).
        test: test images and labels, likewise.
        num_classes: number of classes.
        batch_size: images per training batch; the last, partial batch of an epoch is kept.
        seed: the run's seed.
        padding: pixels around the image from which a crop of its own size is taken; 0 for none.
        flip: whether each image is mirrored with probability ½.
        pad_value: the rounded `mean` of the channel, which is zero after standardising (within half
            a grey level), or raw `zero`.
        mean: per channel, between 0 and 1, the full scale; the training pixels' own by default.
        std: deviation per channel, likewise.
        device: where the images live, as bytes: N C (H + 2 padding)² for training, twice that with
            a mirrored copy.
        flipped_copy: whether, if `flip`, a mirrored copy of all images is stored, so that nothing
            is mirrored batch by batch. The batches are the same.

    Raises:
        ValueError: if images and labels do not fit each other (see `check_batch`), or a value is
            out of range.
    """

    def __init__(
        self,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        num_classes: int,
        batch_size: int,
        seed: int,
        padding: int = 0,
        flip: bool = False,
        pad_value: PadValue = "mean",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        flipped_copy: bool = True,
    ) -> None:
        images, labels = train
        for which, split in (("training", train), ("test", test)):
            tensors = map(torch.as_tensor, split)
            check_batch(which, *tensors, images.shape[1:], torch.uint8, num_classes)
        self.train_size, self.channels, self.image_size, _ = images.shape
        self.test_size = len(test[0])
        self.num_classes = num_classes
        self.steps_per_epoch = count_steps(self.train_size, batch_size)
        if not 0 <= padding <= self.image_size:
            raise ValueError(f"padding={padding}; choices: 0 to {self.image_size}, the image size")
        self.batch_size = batch_size
        self.seed = seed
        self.padding = padding
        self.flip = flip
        self.device = torch.device(device)

        own_mean, own_std = _pixel_statistics(images)
        mean = own_mean if mean is None else mean
        std = own_std if std is None else std
        self.standardise = Standardise(mean, std, self.channels, device)

        pads = {"mean": np.rint(np.asarray(mean) * 255), "zero": np.zeros(self.channels)}
        if pad_value not in pads:
            raise ValueError(f"pad_value={pad_value!r}; choices: {', '.join(pads)}")
        self._mirrored = flip and flipped_copy
        size = self.image_size + 2 * padding
        shape = (1 + self._mirrored, self.train_size, self.channels, size, size)
        padded = np.empty(shape, np.uint8)
        padded[0] = pads[pad_value].astype(np.uint8).reshape(-1, 1, 1)
        inner = slice(padding, padding + self.image_size)
        padded[0, :, :, inner, inner] = images
        frames = torch.from_numpy(padded)
        if self._mirrored:
            frames[1] = frames[0].flip(3)
        frames = frames.to(self.device)
        # A view of all windows of an image's size, one for each byte where one can begin, most of
        # them across images: one index then gathers a batch of crops.
        strides = frames.stride()[1:]
        last = (self.channels - 1) * strides[1] + (self.image_size - 1) * (strides[2] + 1)
        self._windows = frames.view(-1).as_strided(
            (frames.numel() - last, self.channels, self.image_size, self.image_size),
            (1, *strides[1:]),
        )
        self._frame_strides = strides
        self.train_labels = torch.as_tensor(labels, dtype=torch.int64, device=self.device)
        self.test_images = torch.as_tensor(test[0], device=self.device)
        self.test_labels = torch.as_tensor(test[1], dtype=torch.int64, device=self.device)

    def _epoch(self, stream: str, epoch: int) -> Iterator[Draw]:
        random = generator(self.seed, stream, epoch)
        order = random.permutation(self.train_size)
        rows, columns = random.integers(0, 2 * self.padding + 1, (2, self.train_size))
        flips = random.random(self.train_size) < (0.5 if self.flip else 0.0)
        image, row = self._frame_strides[0], self._frame_strides[2]
        if self.flip and not self._mirrored:
            index = np.stack([order * image + rows * row + columns, flips], 1)
        else:  # what is cut from the left of an image is on the right of its mirror
            places = (order + flips * self.train_size) * image
            places += rows * row + np.where(flips, 2 * self.padding - columns, columns)
            index = places[:, None]
        index, labels = (torch.from_numpy(numbers).to(self.device) for numbers in (index, order))
        labels = self.train_labels[labels]
        yield from zip(index.split(self.batch_size), labels.split(self.batch_size), strict=True)

    def draws(self, first_step: int, last_step: int) -> Iterator[Draw]:
        """Yield what `images` makes the batches of steps `first_step` to `last_step` − 1 of.

        These are the crops' places in memory, int64 (B, 1), or with flips that are yet to be made
        (B, 2); and labels, int64 (B,). Both are on the device.
        """
        return across_epochs(
            lambda epoch: self._epoch("train", epoch), self.steps_per_epoch, first_step, last_step
        )

    def images(self, index: Tensor) -> Tensor:
        """Return the images, float32 (B, C, H, W), of what was drawn; all work is the device's."""
        images = self._windows.index_select(0, index[:, 0])
        if index.shape[1] > 1:
            images = torch.where(index[:, 1].bool().view(-1, 1, 1, 1), images.flip(3), images)
        return self.standardise(images)

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step` to `last_step` − 1, epoch after epoch."""
        for index, labels in self.draws(first_step, last_step):
            yield self.images(index), labels

    def batchnorm_batches(self, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield one pass over the augmented training set, or its first `limit` batches.

        Drawn from a stream of its own, so that it takes nothing from training.
        """
        for index, labels in islice(self._epoch("batchnorm", epoch), limit):
            yield self.images(index), labels

    def test_batches(self) -> Iterator[Batch]:
        """Yield the test set, standardised and otherwise untouched."""
        for first in range(0, self.test_size, TEST_BATCH):
            batch = slice(first, first + TEST_BATCH)
            yield self.standardise(self.test_images[batch]), self.test_labels[batch]
