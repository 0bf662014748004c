"""Draw figures: `python scripts/figures.py fig2 preset=mini --train`, or all that there are.

Figures 1 to 3 are of a run that has kept snapshots, by default the paper's, whose overrides may be
changed; --train trains what is missing of it. The others are of the records of the tables.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from phaseavg.errors import UserError
from phaseavg.report.cells import read_paper
from phaseavg.report.figures import course, intervals, segments
from phaseavg.report.figures.drawing import Drawing, write
from phaseavg.report.figures.trajectories import Trajectory, read_trajectory

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

OF_A_RUN: dict[str, tuple[Callable[[Trajectory, Path], Drawing], tuple[str, ...]]] = {
    "fig1": (course.draw, ("snapshots=last_layer", "evaluation.every=1")),
    "fig2": (segments.draw, ("schedule=80", "snapshots=steps")),
    "fig3": (intervals.draw, ("schedule=80", "snapshots=steps")),
}
"""Figures of a run, with what their run is beside plain SGD with the paper's settings."""
