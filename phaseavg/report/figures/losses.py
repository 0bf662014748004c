"""Losses between the weights of a trajectory: the measurements behind Figures 2 and 3."""

import hashlib
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
from phaseavg.report.figures.trajectory import Trajectory, read_numbers
from phaseavg.runs.files import write_atomically
from phaseavg.runs.provenance import device_name
from phaseavg.training.evaluation import evaluate
from phaseavg.training.execution import autocast, prepare
from phaseavg.training.parts import load_data, new_model
from phaseavg.training.trajectory import missing_steps, path_of, read_weights_after

KEY = ["first", "second", "fraction"]

COLUMNS = [
    *("run_id", *KEY, "weights", "steps_per_epoch", "train_loss", "train_error", "test_loss"),
    *("test_error", "train_images", "test_images", "seconds", "device"),
]
"""Of each point: losses are mean cross-entropies, errors are in %."""


@cache
def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


@dataclass(frozen=True)
class Point:
    """(1 − f) θ + f θ′: weights between those of two snapshots.

    Attributes:
        first: the step after which θ was saved.
        second: likewise θ′, a later one or the same.
        fraction: f, from 0 to 1.
    """

    first: int
    second: int
    fraction: float

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """Return the weights; integers, which have no value between, are the second's."""
        ends = read_weights_after(folder, self.first), read_weights_after(folder, self.second)
        return {
            name: torch.lerp(ends[0][name], second, self.fraction)
            if second.is_floating_point()
            else second
            for name, second in ends[1].items()
        }

    def checksum(self, folder: Path) -> str:
        """Return a hash of the two snapshots."""
        return "-".join(_checksum(path_of(folder, step)) for step in (self.first, self.second))


def measured(run: Trajectory, points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """Yield each point with its losses and errors (%), after recomputing BatchNorm statistics.

    The training loss is over the augmented images of the BatchNorm pass, in evaluation mode. At an
    epoch's end the test loss equals the one that the run recorded after its own BatchNorm pass.
    """
    if not points:
        return
    settings, device = prepare(run.settings)
    data = load_data(settings, device)
    model = new_model(settings, data)
    for point in points:
        began = time.perf_counter()
        model.load_state_dict(point.weights(run.folder))
        epoch = (point.second if point.fraction else point.first) // data.steps_per_epoch
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
        }


def of_first_phase(
    run: Trajectory, path: Path, points_of: Callable[[Phase, int], list[Point]]
) -> pd.DataFrame:
    """Return the losses at points of a run's first phase, and measure those that are missing.

    Each point is written as soon as it is measured. What was measured of other weights, as of a run
    that was repeated on another machine, is measured again.

    Args:
        run: as far as it has come; where its snapshots are missing, what was measured counts.
        path: the CSV file of the measurements.
        points_of: returns the points of a phase, by the steps of an epoch.

    Returns:
        A row per point, in their order, with the columns `COLUMNS`.
    """
    known = read_numbers(path, run, COLUMNS)
    if not run.epochs and known.empty:
        return known
    steps = run.steps_per_epoch if run.epochs else int(known["steps_per_epoch"].iloc[0])
    points = points_of(run.schedule.phases[0], steps)
    wanted = pd.DataFrame([asdict(point) for point in points])
    if missing := missing_steps(
        run.folder, sorted({s for p in points for s in (p.first, p.second)})
    ):
        print(f"{path.stem}: {len(missing)} snapshots are not in {run.folder}; {run.command}")
    else:
        expected = wanted.assign(weights=[point.checksum(run.folder) for point in points])
        known = known.merge(expected, on=[*KEY, "weights"], how="inner")
        there = set(known[KEY].itertuples(index=False, name=None))
        left = [
            point for point in points if (point.first, point.second, point.fraction) not in there
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        for row in shown(measured(run, left), len(points), len(points) - len(left)):
            one = pd.DataFrame([row])
            known = one if known.empty else pd.concat([known, one], ignore_index=True)
            text = known.to_csv(index=False, lineterminator="\n")
            write_atomically(path, text.encode(), f"--output={path.parent}")
    return wanted.merge(known[COLUMNS], on=KEY, how="inner")


def shown(
    rows: Iterator[dict[str, Any]], total: int, done: int, console: Console | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the rows as they come, with a bar at a terminal and a line for each in a log.

    Args:
        rows: from `measured`.
        total: number of points.
        done: number of points that were measured before.
        console: standard output by default.
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
