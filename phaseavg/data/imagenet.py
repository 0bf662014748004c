"""ImageNet: image folders or tar shards, decoded and augmented by worker processes."""

import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from phaseavg.data.image_files import ImageFiles, Key, has_images
from phaseavg.data.interface import Batch, across_epochs, count_steps
from phaseavg.data.standardise import Standardise
from phaseavg.errors import UserError
from phaseavg.processes import local_count
from phaseavg.randomness import generator

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The usual channel statistics of ImageNet's training images."""


def _collate(samples: Sequence[tuple[Tensor, int] | UserError]) -> Batch | UserError:
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _begin_worker(worker: int) -> None:
    """Ignore SIGINT and SIGTERM, which reach the whole process group; the main process saves.

    Restore the output streams: a progress bar replaces them by ones with a lock, which another
    thread may have held when this process was forked, so that the first warning would wait forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


class ImageNet:
    """ImageNet, or another data set of class folders or tar shards; a `DataSet`.

    Training images are cropped at random (8 to 100 % of the area, aspect ratio ¾ to 4/3), resized
    and flipped. Test images are resized and centre-cropped. Augmentation depends only on (seed,
    stream, epoch, image) and the order only on (seed, stream, epoch). A run therefore resumes
    exactly from any step, with any number of workers.

    Args:
        batch_size: images per training batch.
        seed: the run's seed.
        data_dir: the parent of `folder`.
        device: the device of the batches; images are transferred as uint8 and standardised there.
        workers: number of processes that read images; None: one per core of this process's
            share of the machine; 0: the main process.
        folder: the folder with `train` and `val`, each with an image folder per class, or with tar
            shards (`image_files.shards`).
        image_size: H = W of the images.
        test_resize: shorter side of test images before the centre crop.
        flip: whether to mirror training images with probability ½.
        color_jitter: strength of random brightness, contrast and saturation changes.
        mean: channel means, between 0 and 1; ImageNet's by default.
        std: channel standard deviations, in the same unit; ImageNet's by default.
        train_fraction: the kept fraction of each class's training images, the first by file name or
            in the shards.
        rank: this process's number among several, from 0 (`DataSet`).
        world_size: the number of processes that divide the batches; each reads only its share.

    Raises:
        ValueError: if folders are missing, classes differ, or an argument is out of range.
    """

    channels = 3

    @staticmethod
    def require(data_dir: Path | str, folder: str = "imagenet") -> None:
        """Raise a ValueError if there are no class folders or shards; images are not read."""
        for split in ("train", "val"):
            if not has_images(Path(data_dir, folder, split)):
                raise ValueError(
                    f"data_dir={data_dir}: {folder}/{split} must hold a folder of images per class "
                    "or tar shards"
                )

    def __init__(
        self,
        batch_size: int,
        seed: int,
        data_dir: Path | str = "data",
        device: torch.device | str = "cpu",
        workers: int | None = None,
        folder: str = "imagenet",
        image_size: int = 224,
        test_resize: int = 256,
        flip: bool = True,
        color_jitter: float = 0.0,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        train_fraction: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        from torchvision.transforms import v2  # the import takes a second

        if not 1 <= image_size <= test_resize:
            raise ValueError(
                f"image_size={image_size}, test_resize={test_resize}: image_size must be positive "
                "and at most test_resize"
            )
        self.device = torch.device(device)
        self.standardise = Standardise(mean, std, self.channels, self.device)
        augment = [v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(0.5 if flip else 0.0)]
        if color_jitter:
            augment.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        centre_crop = [v2.Resize(test_resize), v2.CenterCrop(image_size)]
        self._train, self._test = (
            ImageFiles(
                Path(data_dir),
                str(Path(folder, split)),
                v2.Compose([*steps, v2.PILToTensor()]),
                seed,
                fraction,
            )
            for split, steps, fraction in (
                ("train", augment, train_fraction),
                ("val", centre_crop, 1.0),
            )
        )
        if different := set(self._train.classes) ^ set(self._test.classes):
            raise ValueError(
                f"data_dir={data_dir}: {folder}/train and {folder}/val must have the same classes; "
                f"class {min(different)} is in only one of them"
            )
        # Those of folders are in the order of their names, those of shards in that of numbers.
        numbers = np.array([self._train.classes.index(name) for name in self._test.classes])
        self._test.labels = numbers[self._test.labels]
        self.num_classes = len(self._train.classes)
        self.train_size, self.test_size = len(self._train), len(self._test)
        self.image_size = image_size
        self.batch_size = batch_size
        self.steps_per_epoch = count_steps(self.train_size, batch_size)
        self.seed = seed
        self.share = slice(rank, None, world_size)
        if workers is None:
            from joblib import cpu_count  # counts only cores available to this process

            workers = max(1, cpu_count() // local_count())
        self.workers = workers

    def _load(self, files: ImageFiles, batches: Iterable[list[Key]]) -> Iterator[Batch]:
        # The system's default start method; a launcher may have set another method.
        method = multiprocessing.get_all_start_methods()[0]
        loader = DataLoader(
            files,
            batch_sampler=batches,
            num_workers=self.workers,
            multiprocessing_context=method if self.workers else None,
            collate_fn=_collate,
            worker_init_fn=_begin_worker,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # instead of the global generator
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
            yield self.standardise(images), labels

    def _epoch(self, stream: str, epoch: int) -> Iterator[list[Key]]:
        """Yield the keys of each batch of an epoch."""
        order = generator(self.seed, stream, epoch).permutation(self.train_size)
        for first in range(0, self.train_size, self.batch_size):
            batch = order[first : first + self.batch_size].tolist()
            yield [(f"{stream}/{epoch}", index) for index in batch]

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step` to `last_step` − 1, epoch after epoch.

        Raises:
            UserError: if a file is not an image or cannot be read.
        """
        batches = across_epochs(
            lambda epoch: self._epoch("train", epoch), self.steps_per_epoch, first_step, last_step
        )
        return self._load(self._train, (keys[self.share] for keys in batches))

    def batchnorm_batches(self, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield one pass over the augmented training set, or its first `limit` batches.

        A separate random stream leaves the training unchanged.
        """
        batches = islice(self._epoch("batchnorm", epoch), limit)
        own = islice(batches, self.share.start, None, self.share.step)
        return self._load(self._train, own)

    def test_batches(self) -> Iterator[Batch]:
        """Yield the centre-cropped test images."""
        keys = [("test/0", index) for index in range(self.test_size)]
        firsts = range(0, self.test_size, self.batch_size)[self.share]
        return self._load(self._test, (keys[i : i + self.batch_size] for i in firsts))
