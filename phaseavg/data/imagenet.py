"""ImageNet: folders of image files, decoded and augmented by worker processes."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from phaseavg.data.interface import Batch, count_steps
from phaseavg.data.standardise import Standardise
from phaseavg.errors import UserError, WorkerLost, told
from phaseavg.randomness import generator, seed_for

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's training pixels, as everybody uses them."""

LARGEST = 8192  # pixels a side; Pillow takes images of much more for an attack


class Key(NamedTuple):
    """Which image, and what its crop and flip are drawn from."""

    stream: str
    epoch: int
    index: int


class Unusable(NamedTuple):
    """A file that is no image, or that could not be read."""

    path: str
    reason: str


class ImageFiles(Dataset):
    """The files of one split as worker processes see them, without hidden files and folders.

    Args:
        data_dir: the user's.
        folder: in it, with a folder of images per class.
        transform: from a PIL image to a uint8 tensor (C, H, W); draws from torch's generator.
        seed: the run's.

    Raises:
        ValueError: if there are no such folders, one has no image in it, or none can be read.
    """

    def __init__(
        self, data_dir: Path, folder: str, transform: Callable[[Any], Tensor], seed: int
    ) -> None:
        from torchvision.datasets import ImageFolder
        from torchvision.datasets.folder import is_image_file, pil_loader

        class Visible(ImageFolder):
            def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
                names = [name for name in super().find_classes(directory)[0] if name[0] != "."]
                if not names:
                    raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
                return names, {name: label for label, name in enumerate(names)}

        root = data_dir / folder

        def visible(path: str) -> bool:
            parts = Path(path).relative_to(root).parts
            return is_image_file(path) and not any(part[0] == "." for part in parts)

        try:
            source = Visible(str(root), is_valid_file=visible)
        except OSError as error:
            raise ValueError(
                f"data_dir={data_dir}: {folder} must hold a folder of images per class "
                f"({str(error).split('. Supported')[0]})"
            ) from error
        self.root, self.transform, self.seed = root, transform, seed
        self.read = pil_loader
        self.classes = source.classes
        # Arrays, not the million tuples that they come as: looking at a Python object writes to its
        # reference count, and so every worker would end up with a copy of all of them.
        below = len(os.path.join(root, ""))  # noqa: PTH118 -- with the separator
        self.paths = np.array([os.fsencode(path[below:]) for path, _ in source.samples])
        self.labels = np.array(source.targets)
        images = map(self._image, range(len(self)))
        if all(isinstance(unusable := image, Unusable) for image in images):
            raise ValueError(
                f"data_dir={data_dir}: none of the {len(self)} images in {folder} can be read, "
                f"the last of them {unusable.path} ({unusable.reason})"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def _image(self, index: int) -> Any:
        """Return a PIL image, or why there is none."""
        path = self.root / os.fsdecode(self.paths[index])
        try:
            return self.read(path)
        except Exception as error:  # PIL raises many kinds
            reason = getattr(error, "strerror", "") or told(error).partition(" <")[0]
            return Unusable(str(path), reason)

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Unusable:
        image = self._image(key.index)
        if isinstance(image, Unusable):
            return image
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.seed, f"{key.stream}/{key.epoch}", key.index))
            return self.transform(image), int(self.labels[key.index])


def collate(samples: Sequence[tuple[Tensor, int] | Unusable]) -> Batch | Unusable:
    """Return images, uint8 (B, C, H, W), and labels, int64 (B,); or the first unusable file."""
    for sample in samples:
        if isinstance(sample, Unusable):
            return sample
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def leave_signals_to_the_run(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach the whole process group: the run has to save first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class ImageNet:
    """Images of a thousand classes, or any other set that is laid out like it; a `DataSet`.

    Training images are cropped at random (8 to 100 % of the area, aspect ratio ¾ to 4/3), resized
    and flipped; test images are resized and the centre is taken. What an image becomes depends on
    (seed, stream, epoch, image) alone, whichever process handles it, and the order of an epoch on
    (seed, stream, epoch): a run goes on exactly from any step, with any number of workers.

    Args:
        batch_size: images per training batch.
        seed: the run's seed.
        data_dir: holds `folder`.
        device: where batches are standardised; until then they are bytes.
        workers: processes that read images; None for one per core, 0 for none but this one.
        folder: holds `train` and `val`, each with a folder of images per class.
        image_size: H = W of the images.
        test_resize: length of a test image's shorter side before its centre is cut out.
        flip: whether each training image is mirrored with probability ½.
        color_jitter: strength of random changes of brightness, contrast and saturation.
        mean: per channel, between 0 and 1; ImageNet's by default.
        std: deviation per channel, likewise.

    Raises:
        ValueError: if the folders are not there or do not fit each other, or a value is out of
            range.
    """

    channels = 3

    @staticmethod
    def require(data_dir: Path | str, folder: str = "imagenet") -> None:
        """Check that there are folders of classes, without reading what is in them.

        Raises:
            ValueError: if not.
        """
        for split in ("train", "val"):
            if not any(Path(data_dir, folder, split).glob("*/")):
                raise ValueError(
                    f"data_dir={data_dir}: {folder}/{split} must hold a folder of images per class"
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
    ) -> None:
        from torchvision.transforms import v2  # takes a second, and few data sets need it

        if not 1 <= image_size <= test_resize <= LARGEST:
            raise ValueError(
                f"image_size={image_size}, test_resize={test_resize}: the first must be positive, "
                f"the second at least as large and at most {LARGEST}"
            )
        if not 0 <= color_jitter <= 255:
            raise ValueError(f"color_jitter={color_jitter}: must be between 0 and 255")
        self.device = torch.device(device)
        self.standardise = Standardise(mean, std, self.channels, self.device)
        augment = [v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(0.5 if flip else 0.0)]
        if color_jitter > 0:
            augment.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        to_bytes = v2.PILToTensor()
        centre = [v2.Resize(test_resize), v2.CenterCrop(image_size)]
        self._train, self._test = (
            ImageFiles(Path(data_dir), f"{folder}/{split}", v2.Compose([*steps, to_bytes]), seed)
            for split, steps in (("train", augment), ("val", centre))
        )
        if different := set(self._train.classes) ^ set(self._test.classes):
            raise ValueError(
                f"data_dir={data_dir}: {folder}/train and {folder}/val must have the same classes; "
                f"only one has {min(different)}"
            )
        self.num_classes = len(self._train.classes)
        self.train_size, self.test_size = len(self._train), len(self._test)
        self.image_size = image_size
        self.batch_size = batch_size
        self.steps_per_epoch = count_steps(self.train_size, batch_size)
        self.seed = seed
        if workers is None:
            from joblib import cpu_count  # that this process may use; needed by few

            workers = cpu_count()
        self.workers = workers

    def _load(self, files: ImageFiles, keys: Iterable[list[Key]]) -> Iterator[Batch]:
        """Yield a batch for each list of keys.

        Raises:
            UserError: if a file is no image, or cannot be read.
            WorkerLost: if a worker process ended; between two batches, whenever it did.
        """
        # The system's own way to start one: a launcher may have made another the default.
        method = multiprocessing.get_all_start_methods()[0]
        loader = DataLoader(
            files,
            batch_sampler=keys,
            num_workers=self.workers,
            multiprocessing_context=method if self.workers else None,
            collate_fn=collate,
            worker_init_fn=leave_signals_to_the_run,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
        )
        try:
            for batch in self._started(loader):
                if isinstance(batch, Unusable):
                    raise UserError(
                        f"{batch.path} cannot be read ({batch.reason}); replace the file and rerun "
                        "the same command to resume"
                    )
                images, labels = (part.to(self.device, non_blocking=True) for part in batch)
                yield self.standardise(images), labels
        except (RuntimeError, ConnectionError, EOFError) as error:  # the latter before it is known
            if isinstance(error, RuntimeError) and "DataLoader worker (pid" not in str(error):
                raise
            raise WorkerLost(
                f"execution.workers={self.workers}: one of them is lost, maybe for want of memory "
                f"({told(error)}); rerun the same command to resume"
            ) from error

    def _started(self, loader: DataLoader) -> Iterator[Batch | Unusable]:
        """Return a loader's iterator, which has started its workers.

        Raises:
            UserError: if the system does not start so many.
        """
        before = signal.getsignal(signal.SIGCHLD)
        if getattr(before, "__module__", None) == signal_handling.__name__:  # an earlier loader's
            before = signal.SIG_DFL
        try:
            return iter(loader)
        except OSError as error:
            raise UserError(
                f"execution.workers={self.workers}: they cannot be started ({error.strerror}); "
                "choose fewer"
            ) from error
        finally:
            # Torch's handler would raise in the middle of a step. Its iterator looks by itself.
            with contextlib.suppress(ValueError):  # not the main thread: torch has set none
                signal.signal(signal.SIGCHLD, before)

    def _keys(self, stream: str, epoch: int, first: int, last: int) -> Iterator[list[Key]]:
        """Yield the keys of batches `first` to `last` − 1 of an epoch."""
        order = generator(self.seed, stream, epoch).permutation(self.train_size)
        for position in range(first, min(last, self.steps_per_epoch)):
            batch = order[position * self.batch_size :][: self.batch_size]
            yield [Key(stream, epoch, index) for index in batch.tolist()]

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step` to `last_step` − 1, epoch after epoch.

        Raises:
            UserError: if a file is no image, or cannot be read.
        """

        def keys() -> Iterator[list[Key]]:
            step = first_step
            while step < last_step:
                epoch, position = divmod(step, self.steps_per_epoch)
                for batch in self._keys("train", epoch, position, position + last_step - step):
                    yield batch
                    step += 1

        return self._load(self._train, keys())

    def batchnorm_batches(self, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield one pass over the augmented training set, or its first `limit` batches.

        Drawn from a stream of its own, so that it takes nothing from training.
        """
        last = self.steps_per_epoch if limit is None else limit
        return self._load(self._train, self._keys("batchnorm", epoch, 0, last))

    def test_batches(self) -> Iterator[Batch]:
        """Yield the centres of the test images."""
        indices = range(self.test_size)
        keys = (
            [Key("test", 0, index) for index in indices[first : first + self.batch_size]]
            for first in range(0, self.test_size, self.batch_size)
        )
        return self._load(self._test, keys)
