"""The figures: what each shows, from what it is drawn, and the files that it is written to.

Each module has `draw(data)`, which returns the picture and a frame with all numbers in it. The
data are overrides, the numbers of one run, or the records of tables. Captions are in
docs/figures.md.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from phaseavg.errors import UserError
from phaseavg.report.cells import CELL, read_paper
from phaseavg.report.figures import claims, fig1, fig2, fig3, fig4, fig5, fig6, gamma0, phases
from phaseavg.report.figures.style import rendered
from phaseavg.report.figures.trajectory import Trajectory, read_trajectory
from phaseavg.report.study import Study, read_study, without_hydra
from phaseavg.runs.files import write_atomically
from phaseavg.sweep.cells import NARROWING, key_of, parsed
from phaseavg.sweep.composing import Compose, composing

Drawn = tuple[Figure, pd.DataFrame]
"""A picture, and all numbers in it."""


@dataclass(frozen=True)
class Asked:
    """What a figure is to be drawn from, and where it is written.

    Attributes:
        overrides: as of train.py.
        output: the folder of the figures.
        conf: the folder of the configs.
        paper: the file of the published cells.
        train: trains what is missing of a run; None draws what there is.
    """

    overrides: Sequence[str]
    output: Path
    conf: Path
    paper: Path
    train: Callable[[Sequence[str]], None] | None = None


@dataclass(frozen=True)
class OfSettings:
    """A figure that is computed from settings alone."""

    title: str
    draw: Callable[[Sequence[str], Compose], Drawn]

    def drawings(self, name: str, asked: Asked) -> Iterator[tuple[str, Drawn]]:
        """Yield the figure with its name. Overrides that choose cells are ignored."""
        overrides = parsed(without_hydra(asked.overrides))
        own = [o.input_line for o in overrides if key_of(o) not in ("table", *NARROWING)]
        with composing(asked.conf) as (_, compose):
            yield name, self.draw(own, compose)


@dataclass(frozen=True)
class OfARun:
    """A figure of one run that has saved its trajectory.

    `numbers` measures what the figure shows and keeps it in a CSV file, from which the figure is
    drawn where the run is not on this machine. `overrides` are the figure's defaults.
    """

    title: str
    draw: Callable[[pd.DataFrame], Drawn]
    numbers: Callable[[Trajectory, Path], pd.DataFrame]
    overrides: tuple[str, ...]

    def drawings(self, name: str, asked: Asked) -> Iterator[tuple[str, Drawn]]:
        """Yield the figure with its name, training its run first if `train` is given.

        Raises:
            UserError: if there is neither a run nor numbers of it.
        """
        run = read_trajectory(asked.overrides, self.overrides, asked.conf)
        if asked.train is not None:
            asked.train(run.overrides)
        name = f"{name}-{run.name}"
        numbers = self.numbers(run, asked.output / f"{name}.csv")
        if numbers.empty:
            raise UserError(f"{name}: its run has saved nothing yet; {run.command}")
        if 0 < run.epochs < run.schedule.total_epochs:
            print(f"{name}: {run.epochs} of {run.schedule.total_epochs} epochs; {run.command}")
        yield name, self.draw(numbers)


@dataclass(frozen=True)
class OfRecords:
    """A figure of the records of tables; `per_network` draws one for each (data set, network)."""

    title: str
    draw: Callable[[Study], Drawn]
    tables: tuple[str, ...]
    per_network: bool = False

    def drawings(self, name: str, asked: Asked) -> Iterator[tuple[str, Drawn]]:
        """Yield the figures with their names.

        Raises:
            UserError: if no run has finished that a figure shows.
        """
        overrides = [f"table={','.join(self.tables)}", *asked.overrides]
        study = read_study(overrides, asked.conf, read_paper(asked.paper))
        cells, ended = len(study.request.cells), study.finished.groupby(CELL).ngroups
        command = shlex.join(["python", "train.py", "-m", *overrides])
        if ended < cells:
            print(f"{name}: {ended} of {cells} cells have runs; {command}")
        parts = {name: study}
        if self.per_network:
            parts = {f"{name}-{'-'.join(n)}": study.of(n) for n in study.networks}
        empty = True
        for full_name, part in parts.items():
            picture, numbers = self.draw(part) if len(part.finished) else (None, part.finished)
            if len(numbers):
                empty = False
                yield full_name, (picture, numbers)
        if empty:
            raise UserError(f"{name}: no run that it shows has finished; {command}")


TABLE_1 = ("t1a", "t1b", "t1c", "t1d")

CONSTANT_RATE = (
    "schedule=constant-80", "save_trajectory=steps", "evaluation.batchnorm_every=20",
)  # fmt: skip
"""The run of Figures 2 and 3."""

FIGURES: dict[str, OfSettings | OfARun | OfRecords] = {
    "fig1": OfARun(
        "The course of a training", fig1.draw, fig1.numbers,
        ("save_trajectory=last_layer", "evaluation.every=1"),
    ),
    "fig2": OfARun(
        "Losses between the epochs of a phase", fig2.draw, fig2.numbers, CONSTANT_RATE
    ),
    "fig3": OfARun(
        "Losses of two-point averages by their interval", fig3.draw, fig3.numbers, CONSTANT_RATE
    ),
    "fig4": OfSettings("Weights of the epochs", fig4.draw),
    "fig5": OfRecords("Learnt weights of the first phase", fig5.draw, ("t1a",), per_network=True),
    "fig6": OfSettings("Learning-rate schedules", fig6.draw),
    "gamma0": OfRecords("Test error by γ0", gamma0.draw, ("t1a",)),
    "phases": OfRecords("Test error at phase ends", phases.draw, TABLE_1, per_network=True),
    "claims": OfRecords(
        "Differences that the claims are about", claims.draw, (*TABLE_1, "t2", "t3", "t4")
    ),
}  # fmt: skip
"""All figures by name."""


def title_of(name: str) -> str:
    """Return the title of a figure by the name of its files."""
    kind, _, rest = name.partition("-")
    title = FIGURES[kind].title if kind in FIGURES else name
    return f"{title}: {rest}" if rest else title


def write(name: str, drawn: Drawn, output: Path) -> list[Path]:
    """Write a figure as SVG and PNG and its numbers as CSV; return the files.

    Raises:
        UserError: if they cannot be written.
    """
    picture, numbers = drawn
    output.mkdir(parents=True, exist_ok=True)
    files = rendered(picture, name)
    files["csv"] = numbers.to_csv(index=False, lineterminator="\n").encode()
    for kind, content in files.items():
        write_atomically(output / f"{name}.{kind}", content, f"--output={output}")
    return [output / f"{name}.{kind}" for kind in files]
