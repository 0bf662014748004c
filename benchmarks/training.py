"""Training beside timm's and torchvision's loops: `python -m benchmarks.training --timm CHECKOUT`.

The same networks with the same first weights learn the same images, in batches of 128, by

* ours: a run's own loop, from `phaseavg.training.loop`, in either profile;
* timm: the train.py of a checkout of its repository, as it comes;
* torchvision: a loop as the reference scripts of torchvision have it, written out below.

What counts is the processor's time of an epoch of training, without reading the data set at the
start, tests and checkpoints. In a round each trains one epoch from the start, in an order that
turns from round to round. A step is measured apart, on a batch that is there already.
"""

import io
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from torch import nn

from benchmarks.common import (
    CPU,
    Goal,
    add_rounds,
    cell,
    mistaken,
    parser_of,
    positive,
    processor_seconds,
    processor_seconds_of,
    repeated,
    report,
    settings_of,
    turned,
)
from benchmarks.images import add_images, in_words, overrides_of, training_images
from benchmarks.loops import (
    DECAY,
    MOMENTUM,
    RATE,
    STEPS,
    TIMM_DIFFERS,
    TIMM_OPTIONS,
    Images,
    reference_epoch,
    reference_steps,
    register,
    timm_epoch,
    timm_script,
)
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.errors import UserError
from phaseavg.runs.folder import RunFolder
from phaseavg.tracking import Tracking
from phaseavg.training.execution import prepare
from phaseavg.training.loop import train
from phaseavg.training.parts import assemble, load_data, new_model
from phaseavg.training.progress import TrainingProgress
from phaseavg.training.sharing import Sharing
from phaseavg.training.step import Step

GOAL = 1.5  # times as fast as timm, an epoch of the network below
GOAL_OF = ("cnn13", 0.125)
FAST, DETERMINISTIC, TORCHVISION, TIMM = "fast", "deterministic", "torchvision", "timm"
OURS = {FAST: "ours, profile=fast", DETERMINISTIC: "ours"}
WITH_END = "with its end"
PEERS = {TIMM: "timm's train.py", TORCHVISION: "a loop as torchvision's"}
SKIPPED = "skipped: no --timm"


@contextmanager
def prepared(settings: Settings) -> Iterator[Settings]:
    """Set torch's switches as a run does; afterwards, as the peers do."""
    try:
        yield prepare(settings)[0]
    finally:
        torch.use_deterministic_algorithms(False)


def our_epoch(way: str, settings: Settings) -> dict[str, float]:
    """Return the processor's seconds of a run of one epoch: of its training, and with its end.

    The end is what ends a phase: averaging, BatchNorm pass, tests and a checkpoint.
    """
    with prepared(settings) as settings, TemporaryDirectory(prefix="phaseavg-") as runs:
        settings = settings.model_copy(update={"runs_dir": Path(runs)})
        data, schedule, state = assemble(settings, CPU)
        times = []

        class Watched(Sharing):
            def is_due(self, epochs: int) -> bool:
                """Note when the epoch's last update is done; save nothing."""
                times.append(processor_seconds())
                return False

        quiet_console = Console(file=io.StringIO())
        progress = TrainingProgress(schedule, state, quiet_console)
        tracking = Tracking(settings.recipe(), settings.record(), state.history)
        with RunFolder(settings.run_folder) as folder, progress:
            start = processor_seconds()
            train(
                state, data, schedule, settings, folder, progress, tracking, Watched(settings, CPU)
            )
            times.append(processor_seconds())
    return {way: times[0] - start, f"{way}, {WITH_END}": times[1] - start}


class Batches:
    """A data set whose images come as they are, made before the step that is measured."""

    def __init__(self, data: DataSet) -> None:
        self.train_batches = data.train_batches


def our_steps(settings: Settings) -> Callable[[], None]:
    """Return what takes STEPS steps of a run, on a batch that is there."""
    data, _, state = assemble(settings, CPU)
    batch = next(data.train_batches(0, 1))
    step = Step(state, Batches(data), settings)
    state.model.train()

    def several() -> None:
        with prepared(settings):
            for _ in range(STEPS):
                step(*batch)

    return several


def measure(
    name: str, width: float, images: Images, arguments: Namespace, script: ModuleType | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the processor's seconds of an epoch, and of a step, of each: a row for each round."""
    batch_size = arguments.batch_size
    common = [
        f"batch_size={batch_size}",
        f"optimizer.lr={RATE}",
        f"weight_decay={DECAY}",
        "schedule.epochs=[1]",
        "schedule.factors=[1]",
        "execution.device=cpu",
        "execution.precision=fp32",  # as the peers, also where profile=fast takes bf16
        *overrides_of(arguments.data_dir, arguments.images),
    ]
    plain = settings_of(name, width, *common)
    ours = {
        way: settings_of(name, width, *common, f"profile={profile}", *arguments.overrides)
        for profile, way in OURS.items()
    }
    data = load_data(plain, CPU)

    def new() -> nn.Module:
        return new_model(plain, data)

    epochs: dict[str, Callable[[], dict[str, float]]] = {
        **{way: partial(our_epoch, way, settings) for way, settings in ours.items()},
        TORCHVISION: lambda: {TORCHVISION: reference_epoch(new(), images, batch_size)},
    }
    if script is not None:
        registered = f"phaseavg_{name}_{width:g}".replace(".", "_")
        register(registered, new)
        epochs[TIMM] = lambda: {TIMM: timm_epoch(script, registered, images, batch_size)}
    steps = {
        **{way: our_steps(settings) for way, settings in ours.items()},
        TORCHVISION: reference_steps(new(), *next(data.train_batches(0, 1))),
    }

    def one_round(number: int) -> dict[str, float]:
        found = {}
        for way in turned(list(steps), number):
            found[f"step: {way}"] = processor_seconds_of(steps[way]) / STEPS
        for way in turned(list(epochs), number):
            found |= epochs[way]()
        return found

    for several in steps.values():
        several()  # warms up
    seconds = repeated(one_round, arguments.rounds, arguments.seconds)
    of_step = pd.DataFrame({way: seconds[f"step: {way}"] for way in steps})
    whole = [f"{way}, {WITH_END}" for way in ours]
    ways = [way for way in (*ours, *whole, TORCHVISION, TIMM) if way in seconds]
    return seconds[ways], of_step


def row(
    name: str, width: float, seconds: pd.DataFrame, unit: float, peers: Sequence[str]
) -> dict[str, Any]:
    """Return a row of a table of times, in units of so many seconds, and of ours beside peers."""
    columns = {way: cell(seconds[way] / unit) for way in seconds}
    faster = {
        f"{way}, times as fast as {peer}": said(seconds, way, peer)
        for way in OURS.values()
        for peer in peers
    }
    return {"network": name, "width": f"{width:g}", "rounds": len(seconds), **columns, **faster}


def said(seconds: pd.DataFrame, way: str, peer: str) -> str:
    """Return how many times as fast as a peer one of ours is, if it was measured."""
    return cell(seconds[peer] / seconds[way]) if peer in seconds else SKIPPED


def goals_of(name: str, width: float, epoch: pd.DataFrame, step: pd.DataFrame) -> list[Goal]:
    """Return what is asked of a network: never slower, and of one more than that."""
    found = []
    for way in OURS.values():
        for what, seconds, peer in (
            ("epoch", epoch, TIMM),
            ("epoch", epoch, TORCHVISION),
            ("step", step, TORCHVISION),
        ):
            least = GOAL if ((name, width), what, peer) == (GOAL_OF, "epoch", TIMM) else 1
            there = peer in seconds
            met = bool((seconds[peer] / seconds[way]).min() >= least) if there else None
            goal = f"at least {least:g}" if least > 1 else "not slower"
            ratio = f"{said(seconds, way, peer)} times as fast" if there else SKIPPED
            of = f"{what} of {name}, width {width:g}, {way}"
            found.append(Goal(of, PEERS[peer], ratio, goal, met))
    return found


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = parser_of("training")
    add_rounds(parser, rounds=3, seconds=120, each="each network and width")
    add_images(parser, default=6_400)
    parser.add_argument("--batch-size", type=positive, default=128, help="images of a step")
    parser.add_argument("--models", nargs="+", default=["cnn13", "resnet34"], help="networks")
    parser.add_argument("--widths", nargs="+", type=float, default=[0.125], help="of each")
    parser.add_argument("--timm", type=Path, help="a checkout of timm's repository")
    parser.add_argument("--overrides", nargs="*", default=[], help="of our run alone")
    arguments = parser.parse_args()
    if arguments.images % arguments.batch_size:
        parser.error(
            f"--images={arguments.images} must be a multiple of --batch-size="
            f"{arguments.batch_size}: timm leaves out a last batch that is smaller"
        )
    return arguments


def main() -> int:
    """Measure and report."""
    arguments = parsed()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    goals: list[Goal] = []
    epochs, steps, rounds = [], [], {}
    script, packages = None, {}
    try:
        images = training_images(arguments.data_dir, arguments.images)
        if arguments.timm is not None:
            script, packages["timm"] = timm_script(arguments.timm)
        for name in arguments.models:
            for width in arguments.widths:
                print(f"{name}, width {width:g} …", file=sys.stderr, flush=True)
                epoch, step = measure(name, width, images, arguments, script)
                epochs.append(row(name, width, epoch, 1, (TORCHVISION, TIMM)))
                steps.append(row(name, width, step, 1e-3, [TORCHVISION]))
                goals += goals_of(name, width, epoch, step)
                rounds |= {f"{name}, {width:g}: epoch": epoch, f"{name}, {width:g}: step": step}
    except UserError as error:
        return mistaken("training", error)
    overrides = f", with {' '.join(arguments.overrides)}" if arguments.overrides else ""
    how = (
        f"{in_words(arguments.data_dir, arguments.images)}; batches of {arguments.batch_size}, SGD "
        f"at rate {RATE}, momentum {MOMENTUM}, weight decay {DECAY}, no workers. All begin with "
        "the same weights. Counted is the processor's time of an epoch of training: making batches "
        "and learning them, without reading the data set at first, tests and checkpoints. Ratios "
        "are taken within a round.\n\n"
        "Ours is a run's own loop in float32, as it is by default and with "
        f"`profile=fast`{overrides}. "
        f"`{WITH_END}` has also what ends a phase: "
        "averaging, BatchNorm passes, tests on a fifth as many images, and a checkpoint. "
        "Torchvision's is a loop as that of its reference scripts: PIL images behind a DataLoader, "
        "and loss and accuracies read after every step. A step is one on a batch that is there.\n\n"
        f"Timm's is its train.py, run with `{TIMM_OPTIONS}`. {TIMM_DIFFERS}"
    )
    tables = {"An epoch, in seconds:": epochs, "A step, in milliseconds:": steps}
    report("training", arguments.output, CPU, how, goals, tables, rounds, packages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
