"""Small data sets, stored on the device as a uint8 tensor and augmented per batch."""

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

TEST_BATCH = 500  # images per test batch; does not affect errors


def _pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation per channel of uint8 images (N, C, H, W), divided by 255.

    The histogram of the 256 levels gives exact sums without a float copy of the images.
    """
    levels = np.arange(256)
    channels = torch.as_tensor(images).transpose(0, 1)
    counts = [torch.bincount(pixels.reshape(-1), minlength=256).numpy() for pixels in channels]
    frequencies = np.array(counts) / channels[0].numel()
    mean = frequencies @ levels
    std = np.sqrt((frequencies * (levels - mean[:, None]) ** 2).sum(1))
    return mean / 255, std / 255


class ResidentImages:
    """Standardised images with random crops from the padded images and random flips.

    Order, crops and flips of an epoch are drawn together on the CPU from (seed, stream, epoch).
    The batches are therefore reproducible from any step and equal on all devices.

    Args:
        train: training images, uint8 (N, C, H, W), and labels, (N,).
        test: test images and labels, in the same format.
        num_classes: number of classes.
        batch_size: images per training batch; the last batch of an epoch may be smaller.
        seed: the run's seed.
        padding: pixels added on each side before the random crop; 0 disables crops.
        flip: whether to mirror images with probability ½.
        pad_value: `mean` for the rounded channel mean, within half a grey level of zero after
            standardising, or `zero` for raw zeros.
        mean: channel means, between 0 and 1; computed from the training images by default.
        std: channel standard deviations, in the same unit and with the same default.
        device: the device that stores the images. Training images occupy N C (H + 2 padding)²
            bytes.
        rank: this process's number among several, from 0 (`DataSet`).
        world_size: the number of processes that divide the batches.

    Raises:
        ValueError: if images or labels are invalid (see `check_batch`), or an argument is out of
            range.
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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        images, labels = train
        for split, arrays in (("training", train), ("test", test)):
            tensors = map(torch.as_tensor, arrays)
            check_batch(split, *tensors, images.shape[1:], torch.uint8, num_classes)
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
        self.share = slice(rank, None, world_size)

        pixel_mean, pixel_std = _pixel_statistics(images)
        mean = pixel_mean if mean is None else mean
        std = pixel_std if std is None else std
        self.standardise = Standardise(mean, std, self.channels, device)

        pads = {"mean": np.rint(np.asarray(mean) * 255), "zero": np.zeros(self.channels)}
        if pad_value not in pads:
            raise ValueError(f"pad_value={pad_value!r}; choices: {', '.join(pads)}")
        size = self.image_size + 2 * padding
        pixels = torch.empty((self.train_size, self.channels, size, size), dtype=torch.uint8)
        pixels[:] = torch.as_tensor(pads[pad_value], dtype=torch.uint8).view(-1, 1, 1)
        inner = slice(padding, padding + self.image_size)
        pixels[:, :, inner, inner] = torch.as_tensor(images)
        pixels = pixels.to(self.device)
        # A view with an image-sized window at every byte offset, so that one index_select gathers
        # a batch of crops. Most windows span several images and are never selected.
        strides = pixels.stride()
        last = (self.channels - 1) * strides[1] + (self.image_size - 1) * (strides[2] + 1)
        self._windows = pixels.view(-1).as_strided(
            (pixels.numel() - last, self.channels, self.image_size, self.image_size),
            (1, *strides[1:]),
        )
        self._strides = strides
        self.train_labels = torch.as_tensor(labels, dtype=torch.int64, device=self.device)
        self.test_images = torch.as_tensor(test[0], device=self.device)
        self.test_labels = torch.as_tensor(test[1], dtype=torch.int64, device=self.device)

    def _epoch(self, stream: str, epoch: int) -> Iterator[Draw]:
        random = generator(self.seed, stream, epoch)
        order = random.permutation(self.train_size)
        rows, columns = random.integers(0, 2 * self.padding + 1, (2, self.train_size))
        flips = random.random(self.train_size) < (0.5 if self.flip else 0.0)
        image, row = self._strides[0], self._strides[2]
        index = np.stack([order * image + rows * row + columns, flips], 1)
        index, order = (torch.from_numpy(array).to(self.device) for array in (index, order))
        labels = self.train_labels[order]
        yield from zip(index.split(self.batch_size), labels.split(self.batch_size), strict=True)

    def draws(self, first_step: int, last_step: int) -> Iterator[Draw]:
        """Yield the inputs of `images` and the labels for steps `first_step` to `last_step` − 1.

        The inputs are the crops' offsets in memory and the flips, int64 (B, 2). Labels are int64
        (B,). Both are on the device.
        """
        batches = across_epochs(
            lambda epoch: self._epoch("train", epoch), self.steps_per_epoch, first_step, last_step
        )
        return ((index[self.share], labels[self.share]) for index, labels in batches)

    def images(self, index: Tensor) -> Tensor:
        """Return the images, float32 (B, C, H, W), for inputs from `draws`; runs on the device."""
        images = self._windows.index_select(0, index[:, 0])
        if self.flip:
            images = torch.where(index[:, 1].bool().view(-1, 1, 1, 1), images.flip(3), images)
        return self.standardise(images)

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step` to `last_step` − 1, epoch after epoch."""
        for index, labels in self.draws(first_step, last_step):
            yield self.images(index), labels

    def batchnorm_batches(self, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield one pass over the augmented training set, or its first `limit` batches.

        A separate random stream leaves the training unchanged.
        """
        batches = islice(self._epoch("batchnorm", epoch), limit)
        for index, labels in islice(batches, self.share.start, None, self.share.step):
            yield self.images(index), labels

    def test_batches(self) -> Iterator[Batch]:
        """Yield the standardised test set."""
        for first in range(0, self.test_size, TEST_BATCH)[self.share]:
            batch = slice(first, first + TEST_BATCH)
            yield self.standardise(self.test_images[batch]), self.test_labels[batch]
