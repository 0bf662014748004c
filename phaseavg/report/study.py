"""From overrides to the files of tables and claims."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from phaseavg.config import Settings, check
from phaseavg.errors import UserError
from phaseavg.report.cells import CELL, key_of, read_cells, records_of, summarised
from phaseavg.report.claims_page import claims_page, judged, summary_of
from phaseavg.report.figures.claims import draw as draw_claims
from phaseavg.report.figures.drawing import WRITTEN, rendered
from phaseavg.report.tables import write_table
from phaseavg.runs.files import write_atomically
from phaseavg.sweep.cells import Cell, Request, Run, read_request, runs_of, whole
from phaseavg.sweep.composing import Compose, cached, composing

SHAPING = {
    *("dataset", "model", "optimizer", "schedule", "averaging", "preset"),
    *("batch_size", "batchnorm_batches", "optimizer_state", "weight_decay"),
}
"""Keys that shape a run's numbers; others are about where, how fast, and what is kept."""


@dataclass
class Study:
    """Cells and what the records say of them.

    Attributes:
        request: tables, cells, seeds.
        runs: by run id.
        records: of the runs that have ended, and
        metrics: of these, from `records_of`.
        paper: the published cells that these can be compared with. Those whose recipe is another
            than in their table alone are not in it: other settings, such as another width, hold
            for all cells.
    """

    request: Request
    runs: dict[str, Run]
    records: pd.DataFrame
    metrics: pd.DataFrame
    paper: pd.DataFrame

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The records by cell and seed; see `read_cells`."""
        return read_cells(self.runs.values(), self.records, self.metrics)

    @property
    def remark(self) -> str:
        """The settings that hold for all cells, in words."""
        shown = [o for o in self.request.common if re.split("[.=/@]", o.lstrip("+~"))[0] in SHAPING]
        return f"With {' '.join(shown)}" if shown else ""


def without_hydra(overrides: Sequence[str]) -> list[str]:
    """Return overrides without those of Hydra itself."""
    return [o for o in overrides if not o.lstrip("+~").startswith("hydra")]


def read_study(
    overrides: Sequence[str],
    conf: Path,
    paper: pd.DataFrame,
    all_cells: bool = False,
    more: Path | None = None,
) -> Study:
    """Return the cells that are asked for, with the records that there are of them.

    Args:
        overrides: as of a sweep; Hydra's own are left out.
        conf: the folder of the configs.
        paper: the published cells.
        all_cells: take whole tables, and of seeds those of the table and those asked for.
        more: another folder of configs, as --config-dir of train.py.

    Raises:
        UserError: if what is asked for does not exist.
    """
    folders = [conf, more] if more else [conf]
    with composing(conf, more) as (options, compose), cached(compose, folders) as composed:
        request = read_request(without_hydra(overrides), options, composed)
        if not request.tables:
            raise UserError(f"table: is missing; choices: {', '.join(options)}")
        if all_cells:
            request = whole(request)
        runs = runs_of(request.cells, request.seeds, composed)
        others = other_recipes(request, runs.values(), paper, composed)
    beside = paper[[key not in others for key in paper.index]]
    return Study(request, runs, *records_of(runs.values()), beside)


def other_recipes(
    request: Request, runs: Iterable[Run], paper: pd.DataFrame, compose: Compose
) -> set[tuple[str, ...]]:
    """Return the published cells whose recipe is another than in their table alone."""
    first: dict[tuple[str, ...], tuple[Cell, Settings]] = {}
    for run in runs if request.common else ():
        for cell in run.cells:
            first.setdefault(key_of(cell), (cell, run.settings))
    others = set()
    for key, (cell, settings) in first.items():
        if key in paper.index:
            alone = compose(cell.overrides[len(request.common) :])
            alone.seed = settings.seed
            if check(alone).run_id != settings.run_id:
                others.add(key)
    return others


def cells_of_study(study: Study) -> pd.DataFrame:
    """Return a row per cell: what `summarised` has, and `averaged`, whether its runs average."""
    baseline = {name: table.baseline for name, table in study.request.tables.items()}
    cells = summarised(study.request.cells, study.rows, study.paper, baseline)
    averaged = {
        key_of(cell): not run.prefixes.averages_nothing
        for run in study.runs.values()
        for cell in run.cells
    }
    cells["averaged"] = [averaged[key] for key in cells[CELL].itertuples(index=False, name=None)]
    return cells


def write_tables(study: Study, output: Path) -> list[Path]:
    """Write the tables of a study to a folder; return the files."""
    cells, written = cells_of_study(study), []
    for name, table in study.request.tables.items():
        title = ". ".join(filter(None, (table.title, study.remark)))
        own, rows = (frame[frame["table"] == name] for frame in (cells, study.rows))
        written += write_table(name, title, own, rows, output)
    return written


def write_claims(study: Study, paper: pd.DataFrame, path: Path) -> list[Path]:
    """Write the verdicts on the paper's claims, as far as the study's cells go; return the files.

    Beside them, under the same name, are a CSV with a line per claim and a picture of the
    differences, once there are any.

    Args:
        study: from `read_study`.
        paper: all published cells.
        path: of the file.
    """
    pages = judged(study.request.cells, study.rows, paper, study.paper)
    (drawing,) = draw_claims(study)
    empty = drawing.data.empty
    path.parent.mkdir(parents=True, exist_ok=True)
    remark = study.remark and f"{study.remark}."
    text = claims_page(pages, remark, "" if empty else path.with_suffix(".svg").name)
    write_atomically(path, text.encode(), f"--claims={path}")
    frame = path.with_suffix(".csv")
    lines = summary_of(pages).rename(columns={"": "id"}).to_csv(index=False, lineterminator="\n")
    write_atomically(frame, lines.encode(), f"--claims={path}")
    if empty:
        return [path, frame]
    pictures = [path.with_suffix(f".{kind}") for kind in WRITTEN]
    for kind, picture in zip(WRITTEN, pictures, strict=True):
        write_atomically(picture, rendered(drawing.picture, "claims", kind), f"--claims={path}")
    return [path, frame, *pictures]
