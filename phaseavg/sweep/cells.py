"""Expand tables into cells, and a sweep's overrides into cells, seeds and runs.

A table (conf/table/*.yaml) has rows and columns, which are lists of overrides. A cell combines a
row with a column, and has one run per seed. Other overrides, such as a scale, apply to all cells.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Annotated, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Sweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from phaseavg.config import SWEEPS, Scalars, Settings, check
from phaseavg.errors import UserError
from phaseavg.runs.prefixes import Prefixes
from phaseavg.sweep.composing import Compose
from phaseavg.targets import unknown_message, validation_message

ColumnId = Annotated[str, Field(pattern=r"^[^\s=,]+$")]
"""The id of a column, without blanks, commas and equals signs."""

NARROWING = ("dataset", "model", "column", "seed")
"""Overrides that select cells and seeds of a table, with one or more values."""

OF_THE_PAPER = re.compile(r"t\d[a-z]?")
"""Names of the paper's tables: `t1a` is Table 1a, as a Hydra option cannot be a number."""


class Table(Scalars):
    """A table, as defined in its YAML file.

    Attributes:
        title: the comparison that the columns make.
        seeds: default seeds of each cell.
        rows: lists of overrides; each sets `dataset` and `model`.
        columns: lists of overrides, by column id.
        baseline: by column, the baseline column, compared seed by seed.
    """

    title: str
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    rows: list[list[str]] = Field(min_length=1)
    columns: dict[ColumnId, list[str]] = Field(min_length=1)
    baseline: dict[ColumnId, ColumnId] = Field(default={})

    @property
    def gammas(self) -> dict[str, float]:
        """The γ0 of the columns that set it, in ascending order."""
        key = "averaging.weights.gamma0"
        settings = {column: _read_settings(overrides) for column, overrides in self.columns.items()}
        gammas = {c: float(values[key]) for c, values in settings.items() if key in values}
        return dict(sorted(gammas.items(), key=lambda item: item[1]))

    @field_validator("baseline")
    @classmethod
    def _check_columns(cls, baseline: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        columns = info.data.get("columns", {})
        for name in (*baseline, *baseline.values()):
            if columns and name not in columns:
                raise ValueError(f"{name} is not a column; choices: {', '.join(columns)}")
        return baseline


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the ids of the table, data set, network and column.

    `overrides` contains the common overrides and those of the row and the column.
    """

    table: str
    dataset: str
    model: str
    column: str
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """The table, data set, network and column in one line."""
        return f"{self.table} {self.dataset} {self.model} {self.column}"


@dataclass
class Request:
    """The tables, cells and seeds that a sweep requests.

    Attributes:
        tables: tables by id; empty for a plain sweep.
        cells: the selected cells of the tables.
        seeds: seeds by table.
        common: overrides of all runs, without `table` and `NARROWING`.
    """

    tables: dict[str, Table]
    cells: list[Cell] = field(default_factory=list)
    seeds: dict[str, list[Any]] = field(default_factory=dict)
    common: list[str] = field(default_factory=list)


def table_title(table: str) -> str:
    """Return the display name of a table, such as `Table 1a`."""
    return f"Table {table[1:] if OF_THE_PAPER.fullmatch(table) else table}"


def paper_tables(tables: Iterable[str]) -> list[str]:
    """Return the paper's tables among the options of `table`, sorted."""
    return sorted(filter(OF_THE_PAPER.fullmatch, tables))


def table_choices(options: Iterable[str]) -> str:
    """List the options of `table` that name tables, for messages."""
    return ", ".join(sorted({*options} - {"none"}))


def parse_overrides(overrides: Iterable[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Parse overrides with Hydra's grammar; `loader` expands globs of options."""
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def override_key(override: Override) -> str:
    """Return the key of an override, without `+` and `~`."""
    return override.get_key_element().lstrip("+~")


def override_values(override: Override) -> list[str]:
    """Return the values of an override, in Hydra's override syntax.

    Raises:
        UserError: if the values are not a finite list, as in `interval(0,1)`.
    """
    value = override.value()
    if isinstance(value, ChoiceSweep) and any(isinstance(item, Sweep) for item in value.list):
        raise UserError(f"{override.input_line}: a list cannot contain a range; list the values")
    if override.is_discrete_sweep():
        if values := list(override.sweep_string_iterator()):
            return values
        raise UserError(f"{override.input_line}: stands for no value; list the values")
    if override.is_sweep_override():
        raise UserError(f"{override.input_line}: must be a list, range or glob of options")
    return [override.get_value_element_as_str()]


STUDY = ("scale", "preset")
"""Config groups whose options name a study and the folder of its results."""


def study_name(overrides: Iterable[str]) -> str:
    """Return the name of the results' folder: the options of `scale` and `preset`, or `full`."""
    parsed = [o for o in parse_overrides(overrides) if override_key(o) in STUDY]
    names = [override_values(override)[0] for override in parsed]
    return "-".join(name for name in names if name not in ("full", "none")) or "full"


def _unquoted(value: str) -> str:
    return value.strip("'\"")


def _read_settings(overrides: Sequence[str]) -> dict[str, str]:
    return {override_key(o): _unquoted(override_values(o)[0]) for o in parse_overrides(overrides)}


def read_table(name: str, common: Sequence[str], compose: Compose) -> Table:
    """Read and validate an option of the config group `table`.

    Args:
        name: the name of the table.
        common: overrides of all runs.
        compose: composes a config.

    Raises:
        UserError: if a value is invalid.
    """
    node = compose([*common, f"table={name}"]).table
    try:
        table = Table.model_validate(OmegaConf.to_container(node, resolve=True))
        for override in chain(*table.rows, *table.columns.values()):
            if parse_overrides([override])[0].is_sweep_override():
                raise UserError(f"table={name}: {override}: must have one value")
        return table
    except HydraException as error:
        raise UserError(f"table={name}: {override}: is not an override") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("table", *first["loc"])))
        reason = validation_message(where, first["input"], first)
        if first["type"] == "missing":
            reason = f"{where}: is missing"
        elif first["type"] == "extra_forbidden":
            reason = unknown_message(where, Table.model_fields)
        raise UserError(f"table={name}: {reason}") from error


def table_cells(name: str, table: Table, common: Sequence[str] = ()) -> list[Cell]:
    """Return the cells of a table, row by row.

    Raises:
        UserError: if a row has no data set or network, if two rows have the same data set and
            network, if a column sets one of `NARROWING`, or if the table sets an override in
            `common`.
    """
    cells: dict[tuple[str, str, str], Cell] = {}
    keys = {override_key(override): override.input_line for override in parse_overrides(common)}
    for row in table.rows:
        settings = _read_settings(row)
        if not {"dataset", "model"} <= settings.keys():
            raise UserError(f"table={name}: table.rows={row} must set dataset and model")
        for column, overrides in table.columns.items():
            own = _read_settings(overrides)
            for key in own.keys() & {*NARROWING}:
                raise UserError(
                    f"table={name}: table.columns.{column}: cannot set {key}; rows set dataset "
                    "and model, table.seeds the seeds"
                )
            for key in keys.keys() & {*settings, *own}:
                raise UserError(
                    f"{keys[key]}: table {name} already sets {key}; select cells with "
                    f"{', '.join(f'{narrowing}=' for narrowing in NARROWING)}"
                )
            ids = (settings["dataset"], settings["model"], column)
            if ids in cells:
                raise UserError(f"table={name}: table.rows={row}: duplicate data set and network")
            cells[ids] = Cell(name, *ids, (*common, *row, *overrides))
    return list(cells.values())


def read_request(
    arguments: Sequence[str],
    options: Sequence[str],
    compose: Compose,
    loader: ConfigLoader | None = None,
) -> Request:
    """Read the overrides of a sweep.

    Args:
        arguments: overrides; `table` and `NARROWING` may have several values.
        options: the options of the config group `table`.
        compose: composes a config.
        loader: expands globs of options.

    Raises:
        UserError: if a table, row or column does not exist, or no cell is selected.
    """
    overrides = {override_key(o): o for o in parse_overrides(arguments, loader)}
    for key in ("plan", "budget"):
        if key in overrides and overrides[key].is_sweep_override():
            raise UserError(f"{overrides[key].input_line}: {key} takes one value for all runs")
    common = [o.input_line for key, o in overrides.items() if key not in SWEEPS]
    requested = override_values(overrides["table"]) if "table" in overrides else []
    names = [_unquoted(value) for value in requested]
    if "all" in names:
        names = [*paper_tables(options), *names]
    names = [name for name in dict.fromkeys(names) if name not in ("all", "none")]
    if not names:
        if "column" in overrides:
            raise UserError("column: only tables have columns; add table=…")
        return Request({}, common=common)

    for name in names:
        if name not in options:
            raise UserError(
                f"table={name}: there is no such option; choices: {table_choices(options)}"
            )
    narrowed = {
        key: list(dict.fromkeys(_unquoted(value) for value in override_values(overrides[key])))
        for key in NARROWING
        if key in overrides
    }
    others = {key: o for key, o in overrides.items() if key not in {*SWEEPS, *NARROWING}}
    for key, override in others.items():
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line}: {key} takes one value in a table's sweep; only "
                f"{', '.join(('table', *NARROWING))} take several"
            )
    common = [override.input_line for override in others.values()]
    tables = {name: read_table(name, common, compose) for name in names}
    cells = [cell for name, table in tables.items() for cell in table_cells(name, table, common)]
    seeds = [parse_overrides([f"seed={seed}"])[0].value() for seed in narrowed.pop("seed", [])]
    return Request(
        tables,
        narrow(cells, narrowed),
        {name: seeds or list(dict.fromkeys(table.seeds)) for name, table in tables.items()},
        common,
    )


def select_all_cells(request: Request) -> Request:
    """Extend a request to all cells of its tables, with the tables' seeds added to its seeds."""
    tables = request.tables.items()
    return replace(
        request,
        cells=[cell for name, table in tables for cell in table_cells(name, table, request.common)],
        seeds={
            name: list(dict.fromkeys([*table.seeds, *request.seeds[name]]))
            for name, table in tables
        },
    )


def narrow(cells: Sequence[Cell], narrowed: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Select cells by data set, network and column.

    Raises:
        UserError: if no cell has a value, or no cell matches all keys.
    """
    where = f"table={','.join(dict.fromkeys(cell.table for cell in cells))}"
    for key, values in narrowed.items():
        choices = list(dict.fromkeys(getattr(cell, key) for cell in cells))
        for value in values:
            if value not in choices:
                raise UserError(
                    f"{key}={value}: {where} has no such {key}; choices: {', '.join(choices)}"
                )
    selected = [c for c in cells if all(getattr(c, key) in narrowed[key] for key in narrowed)]
    if not selected:
        selection = " ".join(f"{key}={','.join(values)}" for key, values in narrowed.items())
        raise UserError(f"{selection}: no cell of {where} matches; choose other values")
    return selected


@dataclass
class Run:
    """A run of a sweep.

    Attributes:
        overrides: the overrides that define the run.
        settings: the validated config.
        cells: the cells that contain the run; empty in a plain sweep.
    """

    overrides: list[str]
    settings: Settings
    cells: list[Cell] = field(default_factory=list)

    @cached_property
    def run_id(self) -> str:
        """See `Settings.run_id`."""
        return self.settings.run_id

    @property
    def labels(self) -> list[str]:
        """The labels of the cells; the paper's tables come first, in their order."""
        ordered = sorted(self.cells, key=lambda c: (not OF_THE_PAPER.fullmatch(c.table), c.table))
        return list(dict.fromkeys(cell.label for cell in ordered))

    @cached_property
    def prefixes(self) -> Prefixes:
        """The prefixes that the run may share with other runs."""
        return Prefixes(self.settings)

    @property
    def epochs(self) -> int:
        """The total number of epochs."""
        return self.prefixes.schedule.total_epochs


def cell_runs(
    cells: Iterable[Cell], seeds: Mapping[str, Sequence[Any]], compose: Compose
) -> Iterator[Run]:
    """Yield the run of each cell and seed; `seeds` maps tables to seeds.

    Raises:
        UserError: if the config of a run is invalid.
    """
    for cell in cells:
        config = compose(cell.overrides)
        for seed in seeds[cell.table]:
            config.seed = seed
            yield Run([*cell.overrides, f"seed={seed}"], check(config), [cell])


def unique_runs(runs: Iterable[Run]) -> dict[str, Run]:
    """Return the first of equal runs, with the cells of all, by run id.

    Raises:
        UserError: if two runs with the same id have different settings.
    """
    unique: dict[str, Run] = {}
    for run in runs:
        first = unique.setdefault(run.run_id, run)
        for key, value in run.settings:
            if value != getattr(first.settings, key):
                cells = f"the cells {first.labels[0]} and {run.labels[0]}" if run.cells else ""
                raise UserError(
                    f"{key}: {cells or 'the requested values'} give the same run id, "
                    f"{run.run_id}; start a sweep for each value, with a runs_dir of its own"
                )
        if run is not first:
            first.cells += run.cells
    return unique
