"""Losses between the weights of a trajectory: the measurements behind Figures 2 and 3."""

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

from phaseavg.averaging import recompute_batchnorm
from phaseavg.phases import Phase
from phaseavg.report.figures.style import COLOURS, plain
from phaseavg.report.figures.trajectory import Trajectory, read_numbers
from phaseavg.runs.files import write_atomically
from phaseavg.runs.provenance import device_name
from phaseavg.training.evaluation import evaluate
from phaseavg.training.execution import autocast, prepare
from phaseavg.training.parts import load_data, new_model
from phaseavg.training.trajectory import missing_steps, read_weights_after, weights_path

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
        first, second = (read_weights_after(folder, step) for step in (self.first, self.second))
        return {
            name: torch.lerp(first[name], end, self.fraction) if end.is_floating_point() else end
            for name, end in second.items()
        }

    def checksum(self, folder: Path) -> str:
        """Return a hash of the two snapshots."""
        return "-".join(_checksum(weights_path(folder, step)) for step in (self.first, self.second))


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
        with torch.inference_mode(), autocast(device, settings.execution.precision):
            recompute_batchnorm(model, data.batchnorm_batches(epoch, settings.batchnorm_batches))
        with torch.inference_mode(), autocast(device, settings.execution.precision):
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
    needed = pd.DataFrame([asdict(point) for point in points])
    ends = sorted({*needed["first"], *needed["second"]})
    if missing := missing_steps(run.folder, ends):
        print(f"{path.stem}: {len(missing)} snapshots are not in {run.folder}; {run.command}")
    else:
        expected = needed.assign(weights=[point.checksum(run.folder) for point in points])
        known = known.merge(expected, on=[*KEY, "weights"], how="inner")
        done = set(known[KEY].itertuples(index=False, name=None))
        left = [point for point in points if astuple(point) not in done]
        path.parent.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(measured(run, left), start=len(points) - len(left) + 1):
            one = pd.DataFrame([row])
            known = one if known.empty else pd.concat([known, one], ignore_index=True)
            text = known.to_csv(index=False, lineterminator="\n")
            write_atomically(path, text.encode(), f"--output={path.parent}")
            losses = f"training loss {row['train_loss']:.4f}, test loss {row['test_loss']:.4f}"
            print(f"{path.stem}: point {number}/{len(points)}, {losses}", flush=True)
    return needed.merge(known[COLUMNS], on=KEY, how="inner")


def loss_panels(picture: Figure) -> Iterator[tuple[Axes, str, str]]:
    """Yield axes, column and colour of the training loss and, below, of the test loss."""
    upper, lower = picture.subplots(2, 1, sharex=True)
    for axes, kind, colour in ((upper, "training", COLOURS[0]), (lower, "test", COLOURS[1])):
        plain(axes).set_ylabel(f"{kind} loss")
        yield axes, f"{kind.removesuffix('ing')}_loss", colour
