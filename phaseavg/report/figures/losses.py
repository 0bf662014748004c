"""Measure losses between the weights of a trajectory, for Figures 2 and 3."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from phaseavg.phases import Phase
from phaseavg.report.figures.style import COLOURS, plain
from phaseavg.report.figures.trajectory import TrajectoryRun, read_numbers
from phaseavg.runs.files import write_atomically
from phaseavg.runs.provenance import device_name
from phaseavg.training.evaluation import evaluate
from phaseavg.training.execution import autocast, prepare
from phaseavg.training.parts import load_data, new_model
from phaseavg.training.posthoc import evaluate_average
from phaseavg.training.trajectory import read_weights_after, weights_path

KEY = ["first", "second", "fraction"]

COLUMNS = [
    *("run_id", *KEY, "weights", "steps_per_epoch", "train_loss", "train_error", "test_loss"),
    *("test_error", "train_images", "test_images", "seconds", "device"),
]
"""The columns of a measured point: losses are mean cross-entropies, errors are in %."""


@cache
def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


@dataclass(frozen=True)
class Point:
    """Interpolated weights (1 − f) θ + f θ′ between two snapshots.

    Attributes:
        first: the step after which θ was saved.
        second: the step after which θ′ was saved, `first` or later.
        fraction: f, from 0 to 1.
    """

    first: int
    second: int
    fraction: float

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """Return the interpolated weights; integer tensors are taken from the second snapshot."""
        first, second = (read_weights_after(folder, step) for step in (self.first, self.second))
        return {
            name: torch.lerp(first[name], end, self.fraction) if end.is_floating_point() else end
            for name, end in second.items()
        }

    def checksum(self, folder: Path) -> str:
        """Return a hash of the two snapshots."""
        return "-".join(_checksum(weights_path(folder, step)) for step in (self.first, self.second))


def measure_losses(run: TrajectoryRun, points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """Yield each point with its losses and errors (%), after recomputing BatchNorm statistics.

    The training loss is the loss of the BatchNorm pass's augmented images in evaluation mode. At
    the end of an epoch, the test loss equals the run's recorded loss after its BatchNorm pass.
    """
    if not points:
        return
    settings, device = prepare(run.settings)
    data = load_data(settings, device)
    model = new_model(settings, data)
    for point in points:
        start = time.perf_counter()
        epoch = point.second // data.steps_per_epoch
        test = evaluate_average(point.weights(run.weights_folder), model, settings, data, epoch)
        with torch.inference_mode(), autocast(device, settings.execution.precision):
            train = evaluate(model, data.batchnorm_batches(epoch))
        yield {
            "run_id": settings.run_id,
            **asdict(point),
            "weights": point.checksum(run.weights_folder),
            "steps_per_epoch": data.steps_per_epoch,
            "train_loss": train.loss,
            "train_error": train.error,
            "test_loss": test.loss,
            "test_error": test.error,
            "train_images": train.images,
            "test_images": test.images,
            "seconds": time.perf_counter() - start,
            "device": device_name(device),
        }


def first_phase_losses(
    run: TrajectoryRun, path: Path, choose_points: Callable[[Phase, int], list[Point]]
) -> pd.DataFrame:
    """Return the losses at points of a run's first phase; measure missing points.

    Each point is saved as soon as it is measured. A point is measured again if its weights have
    changed, for example because the run was repeated on another machine.

    Args:
        run: the run, finished or not; without its snapshots, only saved measurements count.
        path: the CSV file of the measurements.
        choose_points: returns the points of a phase, given the steps per epoch.

    Returns:
        A row per point, in order, with the columns `COLUMNS`.
    """
    saved = read_numbers(path, run, COLUMNS)
    if not run.epochs and saved.empty:
        return saved
    steps = run.steps_per_epoch if run.epochs else int(saved["steps_per_epoch"].iloc[0])
    points = choose_points(run.schedule.phases[0], steps)
    needed = pd.DataFrame([asdict(point) for point in points])
    ends = sorted({*needed["first"], *needed["second"]})
    if missing := run.missing_steps(ends):
        print(
            f"{path.stem}: {len(missing)} snapshots are not in {run.weights_folder}; "
            f"run {run.command}"
        )
    else:
        expected = needed.assign(weights=[point.checksum(run.weights_folder) for point in points])
        saved = saved.merge(expected, on=[*KEY, "weights"], how="inner")
        done = set(saved[KEY].itertuples(index=False, name=None))
        todo = [point for point in points if astuple(point) not in done]
        path.parent.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(measure_losses(run, todo), start=len(points) - len(todo) + 1):
            new = pd.DataFrame([row])
            saved = new if saved.empty else pd.concat([saved, new], ignore_index=True)
            text = saved.to_csv(index=False, lineterminator="\n")
            write_atomically(path, text.encode(), f"--output={path.parent}")
            losses = f"training loss {row['train_loss']:.4f}, test loss {row['test_loss']:.4f}"
            print(f"{path.stem}: point {number}/{len(points)}, {losses}", flush=True)
    return needed.merge(saved[COLUMNS], on=KEY, how="inner")


def loss_panels(picture: Figure) -> Iterator[tuple[Axes, str, str]]:
    """Yield axes, column and colour of the training loss and, below, of the test loss."""
    upper, lower = picture.subplots(2, 1, sharex=True)
    for axes, kind, colour in ((upper, "training", COLOURS[0]), (lower, "test", COLOURS[1])):
        plain(axes).set_ylabel(f"{kind} loss")
        yield axes, f"{kind.removesuffix('ing')}_loss", colour
