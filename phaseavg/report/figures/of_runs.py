"""The figures that are drawn from a run that has kept snapshots."""

from collections.abc import Callable
from pathlib import Path

from phaseavg.report.figures import course, intervals, segments
from phaseavg.report.figures.drawing import Drawing
from phaseavg.report.figures.trajectories import Trajectory

OF_A_RUN: dict[str, tuple[Callable[[Trajectory, Path], Drawing], tuple[str, ...]]] = {
    "fig1": (course.draw, ("save_trajectory=last_layer", "evaluation.every=1")),
    "fig2": (
        segments.draw,
        ("schedule=constant-80", "save_trajectory=steps", "evaluation.batchnorm_every=20"),
    ),
    "fig3": (
        intervals.draw,
        ("schedule=constant-80", "save_trajectory=steps", "evaluation.batchnorm_every=20"),
    ),
}
"""What draws each, and overrides of its run, beside those that all have in common."""
