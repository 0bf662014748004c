"""The cells that a figure is about: which there are, and how to have what is missing of them."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from phaseavg.report.cells import CELL
from phaseavg.sweep.cells import NARROWING, Cell, Table, key_of, parsed, values_of

if TYPE_CHECKING:  # which writes one of the figures
    from phaseavg.report.study import Study

NAMED = 4
"""Cells without a record that are named, before the others are counted."""

OF_SWEEPS = ("table", "column", "plan", "budget")
"""Keys that a single run does not take."""

GAMMA0 = "averaging.weights.gamma0"


def cells_in(study: "Study", tables: Sequence[str], network: tuple[str, str]) -> list[Cell]:
    """Return the cells of some tables that are of one (data set, network)."""
    return [c for c in study.request.cells if c.table in tables and (c.dataset, c.model) == network]


def networks_in(study: "Study", tables: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (data set, network) that some tables have, in order."""
    return list(
        dict.fromkeys((c.dataset, c.model) for c in study.request.cells if c.table in tables)
    )


def finished(study: "Study", cells: Sequence[Cell]) -> pd.DataFrame:
    """Return of `study.rows` those of some cells that have finished."""
    names = pd.MultiIndex.from_tuples([_named(cell) for cell in cells], names=CELL)
    rows = study.rows[study.rows["status"] == "finished"]
    return rows[pd.MultiIndex.from_frame(rows[CELL]).isin(names)]


def gammas_of(table: Table) -> dict[str, float]:
    """Return by column the γ0 that the columns of a table set, in ascending order."""
    found = {
        column: float(values_of(override)[0])
        for column, overrides in table.columns.items()
        for override in parsed(overrides)
        if key_of(override) == GAMMA0
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def without(overrides: Sequence[str], own: str, *kept: str) -> list[str]:
    """Return overrides for a figure that follows from settings, without those that are not for it.

    These choose among cells, or are of what the figure sets itself.

    Args:
        overrides: as Hydra takes them.
        own: a config group; all of it is the figure's own,
        kept: apart from these keys.
    """
    return [
        override.input_line
        for override in parsed(overrides)
        if (key := key_of(override)) not in OF_SWEEPS
        and not (key in NARROWING and override.is_sweep_override())
        and (key.split(".")[0] != own or key in kept)
    ]


def _named(cell: Cell) -> tuple[str, ...]:
    return tuple(getattr(cell, key) for key in CELL)


def command(study: "Study", cells: Sequence[Cell]) -> str:
    """Return what trains some cells, as it is typed."""
    request = study.request
    narrowed = {key: list(dict.fromkeys(getattr(cell, key) for cell in cells)) for key in CELL}
    tables = {name: request.tables[name] for name in narrowed["table"]}
    if {column for table in tables.values() for column in table.columns} == {*narrowed["column"]}:
        del narrowed["column"]
    if any(request.seeds[name] != list(dict.fromkeys(t.seeds)) for name, t in tables.items()):
        seeds = dict.fromkeys(seed for name in tables for seed in request.seeds[name])
        narrowed["seed"] = list(map(str, seeds))
    asked = [*request.common, *(f"{key}={','.join(values)}" for key, values in narrowed.items())]
    return shlex.join(["python", "train.py", "-m", *asked])


def lacking(study: "Study", cells: Sequence[Cell]) -> str:
    """Return in words the cells of which seeds have not finished, and what trains them.

    Nothing if all have.
    """
    rows = finished(study, cells)
    there = set(rows[[*CELL, "seed"]].itertuples(index=False, name=None))
    without: dict[Cell, str] = {}
    for cell in cells:
        seeds = study.request.seeds[cell.table]
        left = [seed for seed in seeds if (*_named(cell), seed) not in there]
        if left:
            of_some = f" (seeds {', '.join(map(str, left))})" if len(left) < len(seeds) else ""
            without[cell] = f"{'/'.join(_named(cell))}{of_some}"
    if not without:
        return ""
    named = list(without.values())
    more = [f"{len(named) - NAMED} more"] if len(named) > NAMED else []
    listed = ", ".join([*named[:NAMED], *more])
    return f"no finished runs of {listed}; {command(study, list(without))}"
