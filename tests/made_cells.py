"""Runs of the paper's tables, for tests of cells and of what they share."""

from collections.abc import Callable, Sequence

from conftest import REPOSITORY
from omegaconf import DictConfig

from phaseavg.sweep.cells import Cell, Request, of_the_paper, read_request

CONF = REPOSITORY / "conf"

OPTIONS = sorted(path.stem for path in (CONF / "table").glob("*.yaml"))
TABLES = of_the_paper(OPTIONS)

WHOLE = ("cnn13", "resnet50")
"""A network of CIFAR and SVHN and one of ImageNet of which all cells are composed."""

TABLE = """\
title: two methods
seeds: [0, 1]
rows:
  - [dataset=digits, model=cnn13_digits]
columns:
  plain: [averaging=none]
  ours: [averaging=phasewise]
  again: [averaging=none]
"""

OTHERS = ("wrn28_10", "resnet34", "densenet121")


def chosen(cells: Sequence[Cell]) -> list[Cell]:
    """Return all cells of two networks, and of each other row of a table one, column by column.

    A table is rows × columns: that a column is the same in each row is tested of all cells, that
    the other networks' runs differ from these in the network alone, of those that are left.
    """
    rows: dict[str, list[tuple[str, str]]] = {}
    columns: dict[str, list[str]] = {}
    for cell in cells:
        for known, new in ((rows, (cell.dataset, cell.model)), (columns, cell.column)):
            if new not in known.setdefault(cell.table, []):
                known[cell.table].append(new)

    def has_its_turn(cell: Cell) -> bool:
        of_its_table = columns[cell.table]
        turn = rows[cell.table].index((cell.dataset, cell.model)) % len(of_its_table)
        return of_its_table[turn] == cell.column

    return [cell for cell in cells if cell.model in WHOLE or has_its_turn(cell)]


def request_for(composed: Callable[[Sequence[str]], DictConfig], *arguments: str) -> Request:
    return read_request(arguments, OPTIONS, composed)
