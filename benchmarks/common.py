"""Share code between benchmarks: timing in rounds, noise images, table and record."""

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


def make_parser(name: str, description: str, rounds: int, seconds: float) -> ArgumentParser:
    """Return a parser with the common options; `rounds` and `seconds` are defaults."""
    parser = ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=rounds, help="maximum per measurement")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="limit per measurement, after two rounds"
    )
    parser.add_argument("--threads", type=positive, default=1, help="torch threads")
    output = RESULTS / f"{name}.jsonl"
    parser.add_argument("--output", type=Path, default=output, help="JSON lines file of records")
    return parser


def positive(argument: str) -> int:
    """Parse a positive integer."""
    if (number := int(argument)) < 1:
        raise ValueError
    return number


def make_settings(*overrides: str) -> Settings:
    """Return the settings of an untracked run.

    Raises:
        UserError: if an override is invalid.
    """
    with composing(CONF) as (_, compose):
        return check(compose(["tracking=none", *overrides]))


# Images


class Pictures(CIFAR100):
    """Serve images in memory with torchvision's `CIFAR100.__getitem__`, as PIL images.

    Args:
        images: pixels and labels.
        transform: a transform of PIL images.
    """

    def __init__(self, images: Images, transform: Callable[[Any], Any] | None = None) -> None:
        VisionDataset.__init__(self, root="", transform=transform)
        self.data, self.targets = images


def noise(count: int, size: int = 32, classes: int = 100) -> Images:
    """Return noise images, `size` pixels high and wide; the defaults match CIFAR-100."""
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
    """Return `noise` as a data set; a fifth of the images also forms the test set.

    The remaining arguments are passed to `ResidentImages`.
    """
    pixels, labels = noise(images, size, classes)
    train = pixels.transpose(0, 3, 1, 2), np.asarray(labels)
    test = tuple(part[: -(-images // 5)] for part in train)
    return ResidentImages(train, test, classes, batch_size, seed, device=device, **options)


def noise_overrides(images: int, **options: int) -> list[str]:
    """Return overrides that replace CIFAR-100 with noise."""
    target = ["dataset=cifar100", f"dataset._target_={noise_set.__module__}.noise_set"]
    return target + [f"+dataset.{k}={v}" for k, v in {"images": images, **options}.items()]


# Time


def time_wall(call: Callable[[], Any], device: torch.device = CPU) -> float:
    """Return the wall-clock seconds of a call, including asynchronous work on the device."""

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    start = now()
    call()
    return now() - start


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and its finished children so far."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def time_cpu(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call, including worker processes that exit before it returns."""
    start = cpu_seconds()
    call()
    return cpu_seconds() - start


def time_rounds(
    timers: Mapping[str, Callable[[], float]], rounds: int, seconds: float
) -> pd.DataFrame:
    """Time every contender once per round; each round starts with the next contender.

    Args:
        timers: functions that return their own time in seconds.
        rounds: the maximum number of rounds.
        seconds: the time limit for starting a round; the first two rounds ignore it.

    Returns:
        A row per round and a column per contender, in seconds.
    """
    names, start, times = list(timers), time.perf_counter(), []
    while len(times) < rounds and (len(times) < 2 or time.perf_counter() - start < seconds):
        first = len(times) % len(names)
        times.append({name: timers[name]() for name in names[first:] + names[:first]})
    return pd.DataFrame(times, columns=names)


def epoch_end_seconds(
    model: nn.Module, epochs: int, device: torch.device = CPU, home: str = "cpu"
) -> float:
    """Return the seconds of averaging after the second epoch of a phase.

    Args:
        model: the trained model; it receives the average if the phase ends.
        epochs: the length of the phase: 2 to time its end, more to time an epoch inside it.
        device: the model's device.
        home: the average's device.
    """
    averager = Phasewise(model, [epochs], device=home)
    averager.epoch_end(model)  # copies the weights
    return time_wall(partial(averager.epoch_end, model), device)


def batchnorm_seconds(
    model: nn.Module, data: DataSet, device: torch.device = CPU
) -> Callable[[], float]:
    """Return a function that times a BatchNorm pass over one batch, in seconds."""
    images, _ = next(data.train_batches(0, 1))
    return partial(time_wall, partial(recompute_batchnorm, model, [images]), device)


# Output


def spread(values: pd.Series) -> str:
    """Format median, minimum and maximum over rounds with three digits: `1.44 (1.25–1.63)`."""
    numbers = (values.median(), values.min(), values.max())
    return "{} ({}–{})".format(*(f"{float(f'{number:.3g}'):g}" for number in numbers))


def row(
    measured: str, what: str, seconds: pd.Series, baseline: str, baseline_seconds: pd.Series
) -> dict[str, str]:
    """Return a row of the table: the ratio of a contender's time to a baseline's, per round."""
    return {
        "measured": measured,
        "what": what,
        "seconds": spread(seconds),
        "baseline": baseline,
        "baseline seconds": spread(baseline_seconds),
        "ratio": spread(seconds / baseline_seconds),
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
        options: the command-line options; paths are recorded by their last part only.
        device: the measured device.
        rows: the rows of the table.
        rounds: the seconds of every contender in every round, by measurement.
        packages: the versions of the other libraries.
    """
    used = {k: v for k, v in ({**versions(), **(packages or {})}).items() if v is not None}
    arguments = {k: v.name if isinstance(v, Path) else v for k, v in vars(options).items()}
    cpu = [device_name(CPU)] * (device.type != "cpu")
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{device.type} ({', '.join([device_name(device), *cpu])})",
        "threads": torch.get_num_threads(),
        "versions": used,
        "options": {k: v for k, v in arguments.items() if k != "output"},
        "rounds": {measured: frame.to_dict("records") for measured, frame in rounds.items()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    print("\nMedian (minimum–maximum) over rounds; ratio: seconds / baseline seconds, per round.")
