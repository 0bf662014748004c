"""The cells of tables as data, and the cells, seeds and runs that a sweep requests.

A table (conf/table/*.yaml) is rows × columns, each a list of overrides; a cell is one of each, and
its runs are that list × seeds. Other overrides, such as a preset, hold for all cells.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Annotated, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from phaseavg.config import Scalars, Settings, check
from phaseavg.errors import UserError
from phaseavg.runs.prefixes import Prefixes
from phaseavg.sweep.composing import Compose

ColumnId = Annotated[str, Field(pattern=r"^[^\s=,]+$")]
"""What `column=` takes: without blanks, commas and equals signs."""

NARROWING = ("dataset", "model", "column", "seed")
"""What may take several values beside `table`, and narrows it."""

OF_THE_PAPER = re.compile(r"t\d[a-z]?")
"""The names of the paper's tables: `t1a` is Table 1a. Hydra takes a bare number for no option."""


class Table(Scalars):
    """One table, as in its YAML file.

    Attributes:
        title: what its columns compare.
        seeds: default seeds of a cell's runs.
        rows: lists of overrides; each sets `dataset` and `model`.
        columns: lists of overrides by the column's id.
        baseline: by column, the column that it is compared with, seed by seed.
    """

    title: str
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    rows: list[list[str]] = Field(min_length=1)
    columns: dict[ColumnId, list[str]] = Field(min_length=1)
    baseline: dict[ColumnId, ColumnId] = Field(default={})

    @property
    def gammas(self) -> dict[str, float]:
        """The γ0 that columns set, by column in ascending order."""
        key = "averaging.weights.gamma0"
        settings = {column: _settings_of(overrides) for column, overrides in self.columns.items()}
        gammas = {column: float(own[key]) for column, own in settings.items() if key in own}
        return dict(sorted(gammas.items(), key=lambda item: item[1]))

    @field_validator("baseline")
    @classmethod
    def _columns_of_the_table(
        cls, baseline: dict[str, str], info: ValidationInfo
    ) -> dict[str, str]:
        columns = info.data.get("columns", {})
        for name in (*baseline, *baseline.values()):
            if columns and name not in columns:
                raise ValueError(f"{name} is no column; choices: {', '.join(columns)}")
        return baseline


@dataclass(frozen=True)
class Cell:
    """One number of one table: the ids of its table, data set, network and column.

    Its overrides are those that hold for all cells, and those of its row and column.
    """

    table: str
    dataset: str
    model: str
    column: str
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """Table, data set, network and column in one line."""
        return f"{self.table} {self.dataset} {self.model} {self.column}"


@dataclass
class Request:
    """What a sweep requests.

    Attributes:
        tables: by id; empty for a plain sweep.
        cells: requested cells of these tables.
        seeds: by table.
        common: overrides that hold for all runs, without `table` and what narrows it.
    """

    tables: dict[str, Table]
    cells: list[Cell] = field(default_factory=list)
    seeds: dict[str, list[Any]] = field(default_factory=dict)
    common: list[str] = field(default_factory=list)


def title_of(table: str) -> str:
    """Return what readers call a table: `Table 1a`."""
    return f"Table {table[1:] if OF_THE_PAPER.fullmatch(table) else table}"


def of_the_paper(tables: Iterable[str]) -> list[str]:
    """Return the paper's tables among the options of `table`: only they have numbers."""
    return sorted(filter(OF_THE_PAPER.fullmatch, tables))


def parsed(overrides: Iterable[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Return overrides as Hydra reads them; `loader` knows the options that a glob stands for."""
    return OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))


def key_of(override: Override) -> str:
    """Return what an override sets, without the signs that say how."""
    return override.get_key_element().lstrip("+~")


def values_of(override: Override) -> list[str]:
    """Return the values that an override gives its key, as an override has them.

    Raises:
        UserError: if they cannot be listed.
    """
    if override.is_discrete_sweep():
        if values := list(override.sweep_string_iterator()):
            return values
        raise UserError(f"{override.input_line}: stands for no value; list the values")
    if override.is_sweep_override():
        raise UserError(f"{override.input_line}: a sweep takes lists, ranges and globs of options")
    return [override.get_value_element_as_str()]


def _unquoted(value: str) -> str:
    return value.strip("'\"")


def _settings_of(overrides: Sequence[str]) -> dict[str, str]:
    return {key_of(o): _unquoted(values_of(o)[0]) for o in parsed(overrides)}


def read_table(name: str, common: Sequence[str], compose: Compose) -> Table:
    """Return an option of the config group `table`.

    Args:
        name: of the option.
        common: overrides that hold for all runs; a preset among them may have its own rows.
        compose: composes a config.

    Raises:
        UserError: if a value is wrong.
    """
    node = compose([*common, f"table={name}"]).table
    try:
        table = Table.model_validate(OmegaConf.to_container(node, resolve=True))
        for override in chain(*table.rows, *table.columns.values()):
            if parsed([override])[0].is_sweep_override():
                raise UserError(f"table={name}: {override}: must have one value")
        return table
    except HydraException as error:
        raise UserError(f"table={name}: {override}: is not an override") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("table", *first["loc"])))
        raise UserError(f"table={name}: {where}={first['input']!r}: {first['msg']}") from error


def cells_of(name: str, table: Table, common: Sequence[str] = ()) -> list[Cell]:
    """Return the cells of a table, row by row.

    Raises:
        UserError: if a row lacks its data set or network or repeats another's, or an override in
            `common` is one that the table sets.
    """
    cells: dict[tuple[str, str, str], Cell] = {}
    keys = {key_of(override): override.input_line for override in parsed(common)}
    for row in table.rows:
        settings = _settings_of(row)
        if not {"dataset", "model"} <= settings.keys():
            raise UserError(f"table={name}: table.rows={row} must set dataset and model")
        for column, overrides in table.columns.items():
            for key in keys.keys() & {*settings, *_settings_of(overrides)}:
                raise UserError(
                    f"{keys[key]}: table {name} sets {key} itself; choose among its cells with "
                    f"{', '.join(f'{narrowing}=' for narrowing in NARROWING)}"
                )
            place = (settings["dataset"], settings["model"], column)
            if place in cells:
                raise UserError(f"table={name}: table.rows={row}: there is such a row already")
            cells[place] = Cell(name, *place, (*common, *row, *overrides))
    return list(cells.values())


def read_request(
    arguments: Sequence[str],
    options: Sequence[str],
    compose: Compose,
    loader: ConfigLoader | None = None,
) -> Request:
    """Return what the overrides of a sweep request.

    Args:
        arguments: overrides; `table` and what narrows it may have several values.
        options: of the config group `table`.
        compose: composes a config.
        loader: knows the options of groups, for globs of them.

    Raises:
        UserError: if a table, row or column does not exist, or no cell is left.
    """
    overrides = {key_of(override): override for override in parsed(arguments, loader)}
    own = {"table", "column", "plan", "budget"}
    for key in ("plan", "budget"):
        if key in overrides and overrides[key].is_sweep_override():
            raise UserError(f"{overrides[key].input_line}: {key} takes one value for all runs")
    common = [o.input_line for key, o in overrides.items() if key not in own]
    names = [_unquoted(v) for v in values_of(overrides["table"])] if "table" in overrides else []
    if "all" in names:
        names = [*of_the_paper(options), *names]
    names = [name for name in dict.fromkeys(names) if name not in ("all", "none")]
    if not names:
        if "column" in overrides:
            raise UserError("column: is a table's; add table=…")
        return Request({}, common=common)

    for name in names:
        if name not in options:
            choices = ", ".join(sorted(set(options) - {"none"}))
            raise UserError(f"table={name}: there is no such option; choices: {choices}")
    narrowed = {
        key: list(dict.fromkeys(_unquoted(value) for value in values_of(overrides[key])))
        for key in NARROWING
        if key in overrides
    }
    others = {key: o for key, o in overrides.items() if key not in {*own, *NARROWING}}
    for key, override in others.items():
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line}: of a table's sweep, {key} takes one value; several have "
                f"{', '.join(('table', *NARROWING))}"
            )
    common = [override.input_line for override in others.values()]
    tables = {name: read_table(name, common, compose) for name in names}
    cells = [cell for name, table in tables.items() for cell in cells_of(name, table, common)]
    seeds = [parsed([f"seed={seed}"])[0].value() for seed in narrowed.pop("seed", [])]
    return Request(
        tables,
        narrow(cells, narrowed),
        {name: seeds or list(dict.fromkeys(table.seeds)) for name, table in tables.items()},
        common,
    )


def whole(request: Request) -> Request:
    """Return the request for all cells of its tables, with the tables' seeds beside its own."""
    tables = request.tables.items()
    return replace(
        request,
        cells=[cell for name, table in tables for cell in cells_of(name, table, request.common)],
        seeds={
            name: list(dict.fromkeys([*table.seeds, *request.seeds[name]]))
            for name, table in tables
        },
    )


def narrow(cells: Sequence[Cell], narrowed: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Return the cells whose data set, network and column are among those named.

    Raises:
        UserError: if no cell has such a value, or none has them all.
    """
    where = f"table={','.join(dict.fromkeys(cell.table for cell in cells))}"
    for key, values in narrowed.items():
        choices = list(dict.fromkeys(getattr(cell, key) for cell in cells))
        for value in values:
            if value not in choices:
                raise UserError(
                    f"{key}={value}: {where} has no such {key}; choices: {', '.join(choices)}"
                )
    left = [c for c in cells if all(getattr(c, key) in narrowed[key] for key in narrowed)]
    if not left:
        asked = " ".join(f"{key}={','.join(values)}" for key, values in narrowed.items())
        raise UserError(f"{asked}: no cell of {where} has all of these; choose fewer")
    return left


@dataclass
class Run:
    """One run of a sweep.

    Attributes:
        overrides: that make it.
        settings: its checked config.
        cells: that it is a run of; empty in a plain sweep.
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
        """The labels of its cells, those of the paper's tables first and in their order."""
        ordered = sorted(self.cells, key=lambda c: (not OF_THE_PAPER.fullmatch(c.table), c.table))
        return list(dict.fromkeys(cell.label for cell in ordered))

    @cached_property
    def prefixes(self) -> Prefixes:
        """The prefixes that it may share with other runs."""
        return Prefixes(self.settings)

    @property
    def epochs(self) -> int:
        """Epochs of the run."""
        return self.prefixes.schedule.total_epochs


def runs_of(
    cells: Sequence[Cell], seeds: Mapping[str, Sequence[Any]], compose: Compose
) -> dict[str, Run]:
    """Return the different runs of cells by run id; `seeds` is by table.

    Raises:
        UserError: if the config of a run is wrong.
    """
    runs: dict[str, Run] = {}
    for cell in cells:
        config = compose(cell.overrides)
        for seed in seeds[cell.table]:
            config.seed = seed
            settings = check(config)
            run = Run([*cell.overrides, f"seed={seed}"], settings)
            runs.setdefault(run.run_id, run).cells.append(cell)
    return runs
