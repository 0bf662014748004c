"""Losses between the weights of a trajectory: what Figures 2 and 3 are measured by."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from phaseavg.averaging import recompute_batchnorm
from phaseavg.phases import Phase
from phaseavg.report.figures.trajectories import Trajectory, read_numbers
from phaseavg.runs.files import write_atomically
from phaseavg.runs.provenance import device_name
from phaseavg.training.evaluation import evaluate
from phaseavg.training.execution import autocast, prepare
from phaseavg.training.parts import load_data, new_model
from phaseavg.training.preview import FORWARD_AND_BACKWARD
from phaseavg.training.trajectory import path_of, read_weights_after


@cache
def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


@dataclass(frozen=True)
class Point:
    """(1 − f) θ + f θ′: weights between those of two snapshots.

    Attributes:
        first: the step after which θ was kept.
        second: likewise θ′, a later one or the same.
        fraction: f, from 0 to 1.
    """

    first: int
    second: int
    fraction: float

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """Return the weights; of whole numbers, which cannot be between, the second's."""
        ends = read_weights_after(folder, self.first), read_weights_after(folder, self.second)
        return {
            name: torch.lerp(ends[0][name], second, self.fraction)
            if second.is_floating_point()
            else second
            for name, second in ends[1].items()
        }

    def checksum(self, folder: Path) -> str:
        """Return a hash of the snapshots that it is between."""
        return "-".join(_checksum(path_of(folder, step)) for step in (self.first, self.second))

    def epoch(self, steps_per_epoch: int) -> int:
        """Return the epoch whose images its BatchNorm pass and its training loss are over."""
        return (self.second if self.fraction else self.first) // steps_per_epoch


def measured(run: Trajectory, points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """Yield each point with its losses and errors (%), BatchNorm statistics being recomputed.

    Training losses are those of the pass's own images, which are augmented, in evaluation mode.
    Test losses at an epoch's end are bit by bit what the run has recorded after a BatchNorm pass,
    where they are measured as it was trained.

    Args:
        run: has their snapshots.
        points: in this order.
    """
    if not points:
        return
    settings, device = prepare(run.settings)
    data = load_data(settings, device)
    model = new_model(settings, data)
    print(work(len(points), data.train_size, data.test_size), flush=True)
    for point in points:
        began = time.perf_counter()
        model.load_state_dict(point.weights(run.folder))
        epoch = point.epoch(data.steps_per_epoch)
        with torch.inference_mode():
            with autocast(device, settings.execution.precision):
                images = data.batchnorm_batches(epoch, settings.batchnorm_batches)
                recompute_batchnorm(model, images)
            with autocast(device, settings.execution.precision):
                train = evaluate(model, data.batchnorm_batches(epoch))
                test = evaluate(model, data.test_batches())
        yield {
            "run_id": settings.run_id,
            **asdict(point),
            "weights": point.checksum(run.folder),
            "steps_per_epoch": data.steps_per_epoch,
            "train_loss": train.loss,
            "train_error": train.error,
            "test_loss": test.loss,
            "test_error": test.error,
            "train_images": train.images,
            "test_images": test.images,
            "seconds": time.perf_counter() - began,
            "device": device_name(device),
            "recorded_test_loss": recorded(run, point),
        }


KEY = ["first", "second", "fraction"]

COLUMNS = [
    *("run_id", *KEY, "weights", "steps_per_epoch", "train_loss", "train_error", "test_loss"),
    *("test_error", "train_images", "test_images", "seconds", "device", "recorded_test_loss"),
]
"""Of what is measured; losses are mean cross-entropies, errors in %."""


def measure(
    run: Trajectory, points: Sequence[Point], known: pd.DataFrame, path: Path
) -> pd.DataFrame:
    """Measure what is missing of some points and return all, a row each, in their order.

    Each is written as it comes, so that a cut costs one.

    Args:
        run: has their snapshots, or they are measured already.
        points: what to measure.
        known: what was measured before; of other weights, as of a run that was repeated on another
            machine, it counts as missing.
        path: the file of what is measured.
    """
    if not run.lacks(steps_of(points)):
        now = [point.checksum(run.folder) for point in points]
        expected = pd.DataFrame([asdict(point) for point in points]).assign(weights=now)
        known = known.merge(expected, on=[*KEY, "weights"], how="inner")
        there = set(known[KEY].itertuples(index=False, name=None))
        missing = [p for p in points if (p.first, p.second, p.fraction) not in there]
        path.parent.mkdir(parents=True, exist_ok=True)
        for row in shown(measured(run, missing), len(points), len(points) - len(missing)):
            one = pd.DataFrame([row])
            known = one if known.empty else pd.concat([known, one], ignore_index=True)
            text = known.to_csv(index=False, lineterminator="\n")
            write_atomically(path, text.encode(), f"--output={path.parent}")
    wanted = pd.DataFrame([asdict(point) for point in points])
    return wanted.merge(known[COLUMNS], on=KEY, how="inner")


def of_first_phase(
    run: Trajectory, points_of: Callable[[Phase, int], list[Point]], path: Path
) -> tuple[pd.DataFrame, str]:
    """Return the losses at points of a run's first phase, measuring what is missing of them.

    Args:
        run: as far as it has come; where it is not here, what was measured of it is taken.
        points_of: returns the points of a phase, by the steps of an epoch.
        path: the file of what is measured.

    Returns:
        A row for each point that there is, in their order, with the columns `COLUMNS`; and in words
        what is missing.
    """
    known = read_numbers(path, run, COLUMNS)
    if not run.epochs and known.empty:
        return known, f"no such run has begun; {run.command}"
    steps = run.steps_per_epoch if run.epochs else int(known["steps_per_epoch"].iloc[0])
    points = points_of(run.schedule.phases[0], steps)
    found = measure(run, points, known, path)
    if found.empty:
        return found, run.lacks(steps_of(points))
    return found, f"{len(found)} of {len(points)} points" if len(found) < len(points) else ""


def steps_of(points: Sequence[Point]) -> list[int]:
    """Return the steps whose snapshots some points are between."""
    return sorted({step for point in points for step in (point.first, point.second)})


def shown(
    rows: Iterator[dict[str, Any]], total: int, done: int, console: Console | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows as they come, with a bar at a terminal and a line for each in a log.

    Args:
        rows: from `measured`.
        total: of how many points.
        done: how many of these were measured before.
        console: where to; standard output by default.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    bar = Progress(
        TextColumn("points"), BarColumn(), MofNCompleteColumn(), TextColumn("eta"),
        TimeRemainingColumn(), TextColumn("{task.fields[losses]}"),
        console=console, disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    began = time.monotonic()
    with bar:
        task = bar.add_task("", total=total, completed=done, losses="")
        for number, row in enumerate(rows, start=1):
            losses = f"training loss {row['train_loss']:.4f}, test loss {row['test_loss']:.4f}"
            bar.update(task, completed=done + number, losses=losses)
            if not console.is_terminal:
                pace = (time.monotonic() - began) / number
                left = timedelta(seconds=round(pace * (total - done - number)))
                console.print(f"point {done + number}/{total}  {losses}  eta {left}")
            yield row


def work(points: int, train: int, test: int) -> str:
    """Return in words what measuring so many points takes, of so many images."""
    epochs = points * (2 * train + test) / (FORWARD_AND_BACKWARD * train)
    return (
        f"{points} points, for each a BatchNorm pass and a test over {train:,} training images and "
        f"a test over {test:,} test images: the operations of {epochs:.2g} epochs of training"
    )


def cost(found: pd.DataFrame) -> str:
    """Return in words how many points were measured and what that has cost."""
    train, test = int(found["train_images"].iloc[0]), int(found["test_images"].iloc[0])
    seconds = timedelta(seconds=round(found["seconds"].sum()))
    devices = " and ".join(sorted(set(found["device"])))
    return f"{work(len(found), train, test)}, {seconds} on {devices}"


def recorded(run: Trajectory, point: Point) -> float:
    """Return the test loss after a BatchNorm pass that a run has recorded at a point, or NaN."""
    if point.fraction not in (0.0, 1.0) or "bn.loss" not in run.metrics:
        return math.nan
    at = point.second if point.fraction else point.first
    losses = run.metrics.loc[run.metrics["step"] == at, "bn.loss"]
    return float(losses.iloc[0]) if len(losses) else math.nan


def beside_the_record(found: pd.DataFrame) -> str:
    """Return in words how far the test losses are from those that the run has recorded itself."""
    known = found.dropna(subset="recorded_test_loss")
    if known.empty:
        return ""
    off = (known["test_loss"] - known["recorded_test_loss"]).abs().max()
    return (
        f" Of {len(known)} of the points the run itself has recorded the test loss; the largest "
        f"difference is {off:.2g}."
    )
