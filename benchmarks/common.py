"""Shared parts of the benchmarks: timing in rounds, images, the table and the record."""

import json
import resource
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.datasets import CIFAR100, VisionDataset

from phaseavg.averaging import Phasewise, recompute_batchnorm
from phaseavg.config import Settings, check
from phaseavg.data import DataSet
from phaseavg.data.resident import ResidentImages
from phaseavg.runs.provenance import device_name, versions
from phaseavg.sweep.composing import composing

CONF = Path(__file__).parents[1] / "conf"
RESULTS = Path(__file__).parent / "results"
CPU = torch.device("cpu")

Images = tuple[np.ndarray, list[int]]
"""Pixels, uint8 (N, H, W, C), and labels."""


def parser_of(name: str, description: str, rounds: int, seconds: float) -> ArgumentParser:
    """Return a parser with the options of every benchmark, and defaults of two of them."""
    parser = ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=rounds, help="at most, per measurement")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="per measurement, after two rounds"
    )
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch")
    output = RESULTS / f"{name}.jsonl"
    parser.add_argument("--output", type=Path, default=output, help="file to append the record to")
    return parser


def positive(typed: str) -> int:
    """Return an option's value, which must be a positive integer."""
    if (number := int(typed)) < 1:
        raise ValueError
    return number


def settings_of(*overrides: str) -> Settings:
    """Return the settings of an untracked run.

    Raises:
        UserError: if an override is wrong.
    """
    with composing(CONF) as (_, compose):
        return check(compose(["tracking=none", *overrides]))


# Images


class Pictures(CIFAR100):
    """Images in memory behind torchvision's `CIFAR100.__getitem__`, which yields PIL images.

    Args:
        images: pixels and labels.
        transform: applied to each PIL image.
    """

    def __init__(self, images: Images, transform: Callable[[Any], Any] | None = None) -> None:
        VisionDataset.__init__(self, root="", transform=transform)
        self.data, self.targets = images


def noise(count: int, size: int = 32, classes: int = 100) -> Images:
    """Return images of noise, `size` pixels high and wide; by default as CIFAR-100's."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)
    return pixels, [index % classes for index in range(count)]


def noise_set(
    batch_size: int,
    seed: int,
    images: int,
    device: torch.device | str = "cpu",
    size: int = 32,
    classes: int = 100,
    **options: Any,
) -> ResidentImages:
    """Return `noise` as a run's data set; a fifth of it is the test set.

    The other arguments are those of `ResidentImages`.
    """
    pixels, labels = noise(images, size, classes)
    train = pixels.transpose(0, 3, 1, 2), np.asarray(labels)
    test = tuple(part[: -(-images // 5)] for part in train)
    return ResidentImages(train, test, classes, batch_size, seed, device=device, **options)


def noise_overrides(images: int, **options: int) -> list[str]:
    """Return the overrides that make a run train on noise instead of CIFAR-100."""
    target = ["dataset=cifar100", f"dataset._target_={noise_set.__module__}.noise_set"]
    return target + [f"+dataset.{k}={v}" for k, v in {"images": images, **options}.items()]


# Time


def wall_seconds_of(call: Callable[[], Any], device: torch.device = CPU) -> float:
    """Return the wall-clock seconds of a call, including the work it leaves on the device."""

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    start = now()
    call()
    return now() - start


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its finished children so far."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def cpu_seconds_of(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call, including worker processes that end within it."""
    start = cpu_seconds()
    call()
    return cpu_seconds() - start


def in_rounds(
    contenders: Mapping[str, Callable[[], float]], rounds: int, seconds: float
) -> pd.DataFrame:
    """Time every contender once per round; each round starts with the next contender.

    Args:
        contenders: each returns the seconds that it took.
        rounds: at most.
        seconds: after which no new round starts; there are at least two, unless `rounds` is 1.

    Returns:
        A row per round and a column per contender, in seconds.
    """
    names, start, found = list(contenders), time.perf_counter(), []
    while len(found) < rounds and (len(found) < 2 or time.perf_counter() - start < seconds):
        first = len(found) % len(names)
        found.append({name: contenders[name]() for name in names[first:] + names[:first]})
    return pd.DataFrame(found, columns=names)


def epoch_end_seconds(
    model: nn.Module, epochs: int, device: torch.device = CPU, home: str = "cpu"
) -> float:
    """Return the seconds of averaging after the second epoch of a phase.

    Args:
        model: in training; gets the average's weights if the phase ends.
        epochs: of the phase: 2, or more for an epoch inside it.
        device: of the model.
        home: device of the average.
    """
    averager = Phasewise(model, [epochs], device=home)
    averager.epoch_end(model)  # copies the weights
    return wall_seconds_of(partial(averager.epoch_end, model), device)


def batchnorm_seconds(
    model: nn.Module, data: DataSet, device: torch.device = CPU
) -> Callable[[], float]:
    """Return a function that returns the seconds of a BatchNorm pass over one batch."""
    images, _ = next(data.train_batches(0, 1))
    return partial(wall_seconds_of, partial(recompute_batchnorm, model, [images]), device)


# Output


def spread(values: pd.Series) -> str:
    """Return minimum, median and maximum over the rounds, with three digits: `1.25–1.44–1.63`."""
    numbers = (values.min(), values.median(), values.max())
    return "–".join(f"{float(f'{number:.3g}'):g}" for number in numbers)


def row(
    measured: str, what: str, seconds: pd.Series, beside: str, beside_seconds: pd.Series
) -> dict[str, str]:
    """Return a row of the table: a contender's time as a multiple of another's, round by round."""
    return {
        "measured": measured,
        "what": what,
        "seconds": spread(seconds),
        "beside": beside,
        "seconds beside": spread(beside_seconds),
        "ratio": spread(seconds / beside_seconds),
    }


def report(
    options: Namespace,
    device: torch.device,
    rows: Sequence[Mapping[str, str]],
    rounds: Mapping[str, pd.DataFrame],
    packages: Mapping[str, str] | None = None,
) -> None:
    """Append a record of the run to `options.output`, and print the table.

    Args:
        options: of the command line; of paths, only the last part is recorded.
        device: that was measured.
        rows: of the table.
        rounds: seconds of every contender in every round, by what was measured.
        packages: versions of the peers.
    """
    used = {k: v for k, v in ({**versions(), **(packages or {})}).items() if v is not None}
    typed = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items()}
    cpu = [device_name(CPU)] * (device.type != "cpu")
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{device.type} ({', '.join([device_name(device), *cpu])})",
        "threads": torch.get_num_threads(),
        "versions": used,
        "options": {k: v for k, v in typed.items() if k != "output"},
        "rounds": {measured: frame.to_dict("records") for measured, frame in rounds.items()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    print("\nMinimum–median–maximum over rounds; ratio: seconds / seconds beside, in one round.")
