"""Time training steps and averaging on an NVIDIA GPU.

    python -m benchmarks.gpu --models cnn13 resnet34

Each execution mode trains a network with the training loop's step, on noise in GPU memory: 32
pixels for CIFAR networks, 224 for ImageNet networks. A round times a few steps of each mode, a
phase end with the average in CPU or GPU memory, and a batch of a BatchNorm pass. The time per
epoch is the time of a step times the steps on the full training set. All times are wall-clock
seconds and include waiting for the GPU.
"""

import gc
import sys
from argparse import Namespace
from functools import partial
from itertools import islice

import pandas as pd
import torch

from benchmarks import common
from phaseavg.cli import one_line_errors
from phaseavg.data.interface import count_steps
from phaseavg.errors import UserError
from phaseavg.training.execution import autocast, prepare
from phaseavg.training.parts import assemble
from phaseavg.training.step import WARM_UP, new_step

CHUNK = 10  # steps timed together
CIFAR = ("cnn13", "resnet34", "densenet121", "wrn28_10")
IMAGENET = ("resnet50", "resnext50", "vgg16")
EPOCH_IMAGES = {**dict.fromkeys(CIFAR, 50_000), **dict.fromkeys(IMAGENET, 1_281_167)}

BATCHNORM = "BatchNorm pass"  # timed on one batch

PLAIN = "TF32, NCHW"
NCHW = ["execution.channels_last=false", "execution.graph=false"]
BF16, EAGER = "execution.precision=bf16", "execution.graph=false"
WAYS = {
    PLAIN: ["execution.precision=tf32", *NCHW],
    "FP32, NCHW": ["execution.precision=fp32", *NCHW],
    "deterministic": ["profile=deterministic"],
    "BF16, NHWC": [BF16, EAGER],
    "BF16, NHWC, graph": [BF16],
    "BF16, NHWC, compiled": [BF16, EAGER, "execution.compile=true"],
    "BF16, NHWC, graph, compiled": [BF16, "execution.compile=true"],
    "BF16, NHWC, graph, max-autotune": [BF16, "execution.compile=max-autotune"],
}
"""The overrides of each execution mode, in addition to `profile=fast`."""


class Training:
    """Training in one of `WAYS`; `first_seconds` includes compiling and recording a graph."""

    def __init__(self, name: str, way: str, options: Namespace, device: torch.device) -> None:
        batch = options.batch_size or (128 if name in CIFAR else 256)
        large = {} if name in CIFAR else {"size": 224, "classes": 1000}
        overrides = common.noise_overrides(batch * (100 if name in CIFAR else 4), **large)
        overrides += [f"model={name}", f"batch_size={batch}", f"execution.device={device}"]
        overrides += [f"model.width={options.width}"] * (name in CIFAR) + ["averaging=none"]
        settings = common.make_settings(*overrides, "profile=fast", *WAYS[way])
        self.settings, self.device = prepare(settings)
        self.data, _, self.state = assemble(self.settings, self.device)
        self.model = self.state.model.train()
        self._step = new_step(self.state, self.data, self.settings)
        self._draws = self._step.draws(0, sys.maxsize)
        self.first_seconds = common.time_wall(partial(self._take, WARM_UP + 2), self.device)

    def _take(self, steps: int) -> None:
        for drawn in islice(self._draws, steps):
            self._step(*drawn)

    def step_seconds(self) -> float:
        """Return the seconds per step, averaged over `CHUNK` steps."""
        prepare(self.settings)  # other ways have changed torch's global switches
        return common.time_wall(partial(self._take, CHUNK), self.device) / CHUNK

    def batchnorm_seconds(self) -> float:
        """Return the seconds of a BatchNorm pass over one batch."""
        prepare(self.settings)
        with autocast(self.device, self.settings.execution.precision):
            return common.batchnorm_seconds(self.model, self.data, self.device)()


def measure(
    name: str, options: Namespace, device: torch.device
) -> tuple[dict[str, pd.DataFrame], list[dict[str, str]]]:
    """Return the rounds of a network, in seconds, and the rows of the table.

    Raises:
        UserError: if the device supports none of the execution modes.
    """
    gc.collect()  # frees the previous network
    torch.compiler.reset()
    ways: dict[str, Training] = {}
    for way in options.ways:
        try:
            ways[way] = Training(name, way, options, device)
        except UserError as error:
            print(f"{name}, {way}: skipped: {error}", file=sys.stderr, flush=True)
    if not ways:
        raise UserError(f"--models={name}: {device} supports none of --ways; add another way")
    timers = {way: training.step_seconds for way, training in ways.items()}
    first = next(iter(ways))
    training = ways[first]
    for home in dict.fromkeys(("cpu", str(device))):
        end = partial(common.epoch_end_seconds, training.model, 2, device, home)
        timers[f"phase end, average on {home}"] = end
    timers[BATCHNORM] = training.batchnorm_seconds
    common.time_rounds(timers, 1, 0)  # warm-up
    times = common.time_rounds(timers, options.rounds, options.seconds)
    firsts = pd.DataFrame([{way: training.first_seconds for way, training in ways.items()}])
    rounds = {f"step of {name}": times, f"first {WARM_UP + 2} steps of {name}": firsts}
    steps = count_steps(EPOCH_IMAGES[name], training.data.batch_size)
    fastest = times[list(ways)].median().idxmin()
    pairs = [("step", 1, first, way, 1) for way in ways if way != first]
    pairs += [("epoch", steps, first, way, steps) for way in ways if way != first]
    pairs += [("epoch", 1, part, fastest, steps) for part in times if part.startswith("phase end")]
    pairs += [("epoch", steps, BATCHNORM, first, steps)]
    return rounds, [
        common.row(f"{unit} of {name}", a, times[a] * factor, b, times[b] * baseline_factor)
        for unit, factor, a, b, baseline_factor in pairs
    ]


@one_line_errors
def main() -> int:
    """Measure each network; print the table and append the record, even after a failure."""
    parser = common.make_parser("gpu", __doc__.splitlines()[0], rounds=20, seconds=20)
    parser.set_defaults(threads=None)  # torch's default
    parser.add_argument("--models", nargs="+", choices=EPOCH_IMAGES, default=CIFAR, help="networks")
    ways = list(WAYS)[:-1]
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=ways, help="baseline first")
    parser.add_argument("--width", type=float, default=1.0, help="factor on channels (CIFAR)")
    parser.add_argument(
        "--batch-size", type=common.positive, help="default: 128, or 256 for ImageNet networks"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("needs an NVIDIA GPU, but torch does not find a CUDA device")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows, rounds = [], {}
    try:
        for name in options.models:
            print(f"{name} …", file=sys.stderr, flush=True)
            network_rounds, network_rows = measure(name, options, device := torch.device("cuda"))
            rounds |= network_rounds
            rows += network_rows
    finally:
        if rows:
            common.report(options, device, rows, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
