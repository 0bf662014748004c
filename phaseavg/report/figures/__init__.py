"""Register the figures, collect their data and write their files.

Each module has `draw(data)`, which returns the figure and a frame with all its numbers. The data
are the config, the numbers of one run, or the records of tables. Captions are in docs/figures.md.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from phaseavg.errors import UserError
from phaseavg.report.cells import CELL
from phaseavg.report.figures import claims, fig1, fig2, fig3, fig4, fig5, fig6, gamma0, phases
from phaseavg.report.figures.style import render
from phaseavg.report.figures.trajectory import TrajectoryRun, compose_run, read_numbers
from phaseavg.report.study import CONF, Study, read_study, without_hydra
from phaseavg.runs.files import write_atomically
from phaseavg.sweep.cells import override_key, parse_overrides, study_name
from phaseavg.sweep.composing import Compose, composing

Drawn = tuple[Figure, pd.DataFrame]
"""A figure and all its numbers."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of figures, and their output folder.

    Attributes:
        overrides: overrides of train.py.
        output: the output folder; None: `results/figures`, or its subfolder for a scale.
        train: a function that trains or resumes a run; None draws only existing data.
    """

    overrides: Sequence[str]
    output: Path | None = None
    train: Callable[[Sequence[str]], None] | None = None

    @property
    def folder(self) -> Path:
        """The output folder."""
        study = study_name(self.overrides)
        return self.output or Path("results/figures", "" if study == "full" else study)


@dataclass(frozen=True)
class SettingsFigure:
    """A figure of the paper's settings."""

    title: str
    draw: Callable[[Compose], Drawn]

    def drawings(self, name: str, inputs: Inputs) -> Iterator[tuple[str, Drawn]]:
        """Yield the figure with its name. Overrides are ignored."""
        with composing(CONF) as (_, compose):
            yield name, self.draw(compose)


@dataclass(frozen=True)
class RunFigure:
    """A figure of one run with a saved trajectory.

    `numbers` measures the data of the figure and saves them in a CSV file. The figure can be
    redrawn from this file on a machine without the run. `overrides` are the figure's defaults.
    """

    title: str
    draw: Callable[[pd.DataFrame], Drawn]
    numbers: Callable[[TrajectoryRun, Path], pd.DataFrame]
    overrides: tuple[str, ...]

    def drawings(self, name: str, inputs: Inputs) -> Iterator[tuple[str, Drawn]]:
        """Yield the figure with its name; train its run first if `inputs.train` is set.

        Raises:
            UserError: if there are neither snapshots nor saved numbers of the run.
        """
        run = compose_run(inputs.overrides, self.overrides)
        name = f"{name}-{run.name}"
        path = inputs.folder / f"{name}.csv"
        read_numbers(path, run, ["run_id"])  # a mistake is reported before hours of training
        if inputs.train is not None:
            inputs.train(run.overrides)
        numbers = self.numbers(run, path)
        if numbers.empty:
            raise UserError(f"{name}: no saved run; run {run.command}")
        if 0 < run.epochs < run.schedule.total_epochs:
            print(f"{name}: {run.epochs} of {run.schedule.total_epochs} epochs; run {run.command}")
        yield name, self.draw(numbers)


@dataclass(frozen=True)
class RecordsFigure:
    """A figure of table records; `per_network` draws a figure for each (data set, network)."""

    title: str
    draw: Callable[[Study], Drawn]
    tables: tuple[str, ...]
    per_network: bool = False

    def drawings(self, name: str, inputs: Inputs) -> Iterator[tuple[str, Drawn]]:
        """Yield the figures with their names. The user's `table` is ignored.

        Raises:
            UserError: if there is nothing to draw, or published figures would be replaced.
        """
        typed = parse_overrides(without_hydra(inputs.overrides))
        others = [o.input_line for o in typed if override_key(o) != "table"]
        overrides = [f"table={','.join(self.tables)}", *others]
        study = read_study(overrides)
        study.require_output(inputs.output)
        cells, filled = len(study.request.cells), study.finished.groupby(CELL).ngroups
        command = shlex.join(["python", "train.py", "-m", *overrides])
        if filled < cells:
            print(f"{name}: {filled} of {cells} cells have runs; run {command}")
        parts = {name: study}
        if self.per_network:
            parts = {f"{name}-{'-'.join(n)}": study.restrict_to(n) for n in study.networks}
        empty = True
        for full_name, part in parts.items():
            picture, numbers = self.draw(part) if len(part.finished) else (None, part.finished)
            if len(numbers):
                empty = False
                yield full_name, (picture, numbers)
        if empty:
            raise UserError(f"{name}: no numbers to draw yet; run {command}")


TABLE_1 = ("t1a", "t1b", "t1c", "t1d")

CONSTANT_RATE = (
    "schedule=constant-80", "save_trajectory=steps", "evaluation.batchnorm_every=20",
)  # fmt: skip
"""The overrides that define the run of Figures 2 and 3."""

FIGURES: dict[str, SettingsFigure | RunFigure | RecordsFigure] = {
    "fig1": RunFigure(
        "The course of a training", fig1.draw, fig1.numbers,
        ("save_trajectory=last_layer", "evaluation.every=1"),
    ),
    "fig2": RunFigure(
        "Losses between the epochs of a phase", fig2.draw, fig2.numbers, CONSTANT_RATE
    ),
    "fig3": RunFigure(
        "Losses of two-point averages by their interval", fig3.draw, fig3.numbers, CONSTANT_RATE
    ),
    "fig4": SettingsFigure("Weights of the epochs", fig4.draw),
    "fig5": RecordsFigure(
        "Learnt weights of the first phase", fig5.draw, ("t1a",), per_network=True
    ),
    "fig6": SettingsFigure("Learning-rate schedules", fig6.draw),
    "gamma0": RecordsFigure("Test error by γ0", gamma0.draw, ("t1a",), per_network=True),
    "phases": RecordsFigure("Test error at phase ends", phases.draw, TABLE_1, per_network=True),
    "claims": RecordsFigure(
        "Differences that the claims are about", claims.draw, (*TABLE_1, "t2", "t3", "t4")
    ),
}  # fmt: skip
"""All figures by name."""


def figure_title(name: str) -> str:
    """Return the title of a figure, given the stem of its file names."""
    kind, _, rest = name.partition("-")
    titles = {"averages": "Test errors of averages"}  # drawn by scripts/average.py
    titles |= {kind: figure.title for kind, figure in FIGURES.items()}
    title = titles.get(kind, name)
    return f"{title}: {rest}" if rest else title


def write(name: str, drawn: Drawn, output: Path) -> list[Path]:
    """Write a figure as SVG and PNG and its numbers as CSV; return the paths.

    Raises:
        UserError: if a file cannot be written.
    """
    picture, numbers = drawn
    output.mkdir(parents=True, exist_ok=True)
    files = render(picture, name)
    files["csv"] = numbers.to_csv(index=False, lineterminator="\n").encode()
    for kind, content in files.items():
        write_atomically(output / f"{name}.{kind}", content, f"--output={output}")
    return [output / f"{name}.{kind}" for kind in files]
