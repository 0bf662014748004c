"""What a GPU does with this project's training: `python -m benchmarks.gpu PART`.

* `networks`: the CIFAR networks, plain and in each of the ways that are faster
* `determinism`: what deterministic algorithms cost
* `imagenet`: the ImageNet networks on synthetic images of 224×224
* `kernels`: where the time goes, by torch's profiler

All train with the run's own step on noise that lies on the device. A part leaves its record after
each network, and takes what an earlier call on the same machine has left for the others along, so
that it can be measured network by network (`--models`), and cut short. `--device cpu` rehearses it.
"""

import gc
import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import machine_of, mistaken, positive, report, settings_of
from benchmarks.gpu_tables import CIFAR, EPOCH, IMAGENET, PLAIN, goals_of, tables_of
from benchmarks.page import RESULTS
from benchmarks.roofline import least_seconds
from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.runs.provenance import peak_memory_bytes, reset_peak_memory
from phaseavg.targets import build
from phaseavg.training.evaluation import evaluate
from phaseavg.training.execution import autocast, pick_device, prepare
from phaseavg.training.parts import assemble
from phaseavg.training.step import WARM_UP, Step, new_step

CHUNK = 10  # steps between two looks at the clock
KERNELS = 15  # that are listed

FASTEST = "bf16, NHWC, graph"
WAYS: dict[str, list[str]] = {
    PLAIN: ["execution.precision=tf32", "execution.channels_last=false", "execution.graph=false"],
    "bf16, NHWC": ["execution.precision=bf16", "execution.graph=false"],
    FASTEST: ["execution.precision=bf16"],
    "bf16, NHWC, compiled": [
        "execution.precision=bf16", "execution.graph=false", "execution.compile=true"
    ],
    "bf16, NHWC, graph, compiled": ["execution.precision=bf16", "execution.compile=true"],
    "bf16, NHWC, graph, max-autotune": [
        "execution.precision=bf16", "execution.compile=max-autotune"
    ],
}  # fmt: skip
USUAL_WAYS = list(WAYS)[:-1]
DETERMINISM = {
    "profile=fast": [],
    "the same, deterministic": ["execution.deterministic=true"],
    "profile=deterministic": ["profile=deterministic"],
}


# A network in training


def run_settings(name: str, given: Namespace, overrides: Sequence[str]) -> Settings:
    """Return the settings of a run on noise in the shape of the network's data set."""
    target = "noise_set" if name in CIFAR else "large_noise_set"
    width = given.width if name in CIFAR else None
    return settings_of(
        name,
        width,
        f"dataset._target_=benchmarks.images.{target}",
        f"+dataset.train_images={given.images}",
        f"batch_size={given.batch_size}",
        f"execution.device={given.device}",
        "averaging=none",
        *([] if any(o.startswith("profile=") for o in overrides) else ["profile=fast"]),
        *overrides,
    )


class Training:
    """A run's training, ready to be timed.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device = prepare(settings)
        reset_peak_memory(self.device)
        data, _, state = assemble(self.settings, self.device)
        state.model.train()
        self.data, self.state = data, state
        self._step: Step = new_step(state, data, self.settings)
        self._draws = self._step.draws(0, sys.maxsize)

    def steps(self, count: int) -> float:
        """Take steps; return the seconds until the device has done them."""
        start = time.perf_counter()
        for drawn in islice(self._draws, count):
            self._step(*drawn)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - start

    def first_steps(self) -> float:
        """Take the steps in which things are compiled, chosen and recorded; return the seconds."""
        return self.steps(WARM_UP + 2)

    def tail_and_test(self) -> None:
        """Take a step on a smaller batch, and test."""
        drawn, labels = next(self._draws)
        few = max(len(labels) // 2, 2)
        self._step(drawn[:few], labels[:few])
        with torch.inference_mode(), autocast(self.device, self.settings.execution.precision):
            evaluate(self.state.model, self.data.test_batches())

    def measured(self, seconds: float) -> dict[str, float]:
        """Return what a while of steps, and those before them, have shown."""
        first, took = self.first_steps(), []
        start = time.perf_counter()
        while len(took) < 2 or time.perf_counter() - start < seconds:
            took.append(self.steps(CHUNK) / CHUNK)
        return {
            "images_per_second": self.data.batch_size / median(took),
            "first_seconds": first,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }


def freed(call: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what a call returns, with nothing on the device that was there before it."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return call()


def ceilings(device: torch.device, size: int) -> dict[str, float]:
    """Return the rate of a bf16 matrix product (FLOP/s) and of a copy (bytes/s, both ways)."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(8 * size * size, device=device)
    target = torch.empty_like(source)

    def fastest(call: Callable[[], object]) -> float:
        took = []
        for _ in range(12):
            start = time.perf_counter()
            call()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            took.append(time.perf_counter() - start)
        return median(took[2:])

    return {
        "flops": 2 * size**3 / fastest(lambda: a @ b),
        "bandwidth": 2 * source.nbytes / fastest(lambda: target.copy_(source)),
    }


def least(name: str, given: Namespace, ceiling: Mapping[str, float]) -> tuple[float, int]:
    """Return the least seconds of an epoch by the ceilings, and the kernels of a step."""
    settings = run_settings(name, given, [])
    size = 32 if name in CIFAR else 224
    classes = 100 if name in CIFAR else 1000
    offered = {"num_classes": classes, "in_channels": 3, "image_size": size}
    with torch.device("meta"):
        model = build("model", settings.model, offered=offered)
    shape = (given.batch_size, 3, size, size)
    seconds, kernels = least_seconds(model, shape, ceiling["flops"], ceiling["bandwidth"])
    return seconds * EPOCH[name] / given.batch_size, kernels


# The parts: each returns rows of one network


def of_ways(name: str, given: Namespace, ways: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """Return a row for each way that the device can do."""
    rows = []
    for way in ways:
        print(f"{name}, {way} …", file=sys.stderr, flush=True)
        try:
            settings = run_settings(name, given, ways[way])
            found = freed(lambda settings=settings: Training(settings).measured(given.seconds))
        except UserError as error:
            print(f"{name}, {way}: skipped: {error}", file=sys.stderr, flush=True)
            continue
        except RuntimeError as error:  # after which the device is in doubt
            print(f"{name}, {way}: failed, and so no more of {name}: {error}", file=sys.stderr)
            break
        rows.append({"network": name, "way": way, **found})
    return rows


def networks(name: str, given: Namespace) -> list[dict[str, Any]]:
    """Return a row for each way, with the least seconds of an epoch."""
    ceiling = ceilings(pick_device(given.device), given.matrix)
    seconds, kernels = least(name, given, ceiling)
    known = {**ceiling, "least_seconds": seconds, "kernels": kernels}
    ways = {way: WAYS[way] for way in given.ways}
    return [{**row, **known} for row in of_ways(name, given, ways)]


def determinism(name: str, given: Namespace) -> list[dict[str, Any]]:
    """Return a row for each profile."""
    return of_ways(name, given, DETERMINISM)


def kernels(name: str, given: Namespace) -> list[dict[str, Any]]:
    """Return a row for each of the kernels that take the most time."""
    # Else later profiles of CUDA graphs in a process may come out empty.
    os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    training = Training(run_settings(name, given, []))
    training.first_steps()
    training.steps(CHUNK)
    cuda = training.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        took = training.steps(CHUNK)
    of = "self_device_time_total" if cuda else "self_cpu_time_total"
    on_device = [
        event
        for event in seen.key_averages()
        if (event.device_type == DeviceType.CUDA) == cuda and not event.is_user_annotation
    ]
    events = sorted(on_device, key=lambda event: -getattr(event, of))
    busy = sum(getattr(event, of) for event in events) * 1e-6
    rows = [
        {
            "network": name,
            "kernel": " ".join(event.key.split())[:90],
            "launches_per_step": event.count / CHUNK,
            "milliseconds_per_step": getattr(event, of) * 1e-3 / CHUNK,
            "share_of_step": getattr(event, of) * 1e-6 / took,
        }
        for event in events[:KERNELS]
    ]
    whole = {"kernel": "all", "launches_per_step": sum(e.count for e in events) / CHUNK}
    times = {"milliseconds_per_step": busy * 1e3 / CHUNK, "share_of_step": busy / took}
    return [{"network": name, **whole, **times}, *rows]


PARTS: dict[str, Callable[[str, Namespace], list[dict[str, Any]]]] = {
    "networks": networks,
    "determinism": determinism,
    "imagenet": networks,
    "kernels": kernels,
}
COMMON = (
    "The run's own step on noise that lies on the device, batches of {batch}; medians over chunks "
    f"of {CHUNK} steps in {{seconds:g}} s, after the first {WARM_UP + 2} steps. "
)
HOW = {
    "networks": "The least time of an epoch is that of eager kernels at the card's own ceilings, "
    "measured beside (benchmarks/roofline.py); the first steps compile and record.",
    "determinism": "Ratios are to the first row of a network.",
    "imagenet": "As for the networks for CIFAR; images of 224×224, epochs of 1,281,167.",
    "kernels": "By torch's profiler, over ten steps with profile=fast; `all` is the time in which "
    "the device works, as a share of the step.",
}


def earlier(output: Path, part: str, device: torch.device) -> list[dict[str, Any]]:
    """Return the rows that an earlier call on the same machine has left."""
    if not output.exists():
        return []
    record = json.loads(output.read_text())
    return record["rounds"][part] if record["machine"] == machine_of(device) else []


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=[*CIFAR, *IMAGENET], help="networks")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=USUAL_WAYS)
    parser.add_argument("--seconds", type=float, default=3.0, help="that each is timed for")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--width", type=float, default=1.0, help="factor on channels (CIFAR)")
    parser.add_argument("--batch-size", type=positive, help="128; 256 for ImageNet")
    parser.add_argument("--images", type=positive, help="on the device, 100 or 4 times the batch")
    parser.add_argument("--matrix", type=positive, default=8192, help="rows of the product")
    parser.add_argument("--output", type=Path, help="file of the record")
    parser.add_argument("--list", action="store_true", help="name the part's networks, and no more")
    given = parser.parse_args()
    large = given.part == "imagenet"
    given.models = given.models or list(IMAGENET if large else CIFAR)
    given.batch_size = given.batch_size or (256 if large else 128)
    given.images = given.images or given.batch_size * (4 if large else 100)
    given.output = given.output or RESULTS / f"gpu-{given.part}.json"
    return given


def main() -> int:
    """Measure and report."""
    given = parsed()
    if given.list:
        print(*given.models)
        return 0
    try:
        device = pick_device(given.device, "--device")
        rows = earlier(given.output, given.part, device)
        for name in given.models:
            new = PARTS[given.part](name, given)
            keep = [row for row in rows if row["network"] != name]
            rows = [*keep, *new]
            if not rows:
                continue
            frame = pd.DataFrame(rows)
            how = COMMON.format(batch=given.batch_size, seconds=given.seconds) + HOW[given.part]
            how += f" Width {given.width:g}." if given.width != 1 else ""
            goals = goals_of(given.part, frame, device, given.width)
            tables = {"": tables_of(given.part, frame)}
            rounds = {given.part: frame}
            report(f"gpu-{given.part}", given.output, device, how, goals, tables, rounds)
    except UserError as error:
        return mistaken("gpu", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
