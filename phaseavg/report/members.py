"""What is compared: runs by their folders, cells by their names, as far as they have come."""

import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd

from phaseavg.errors import UserError
from phaseavg.report.cells import execution_of, key_of
from phaseavg.report.phase_ends import ERRORS
from phaseavg.report.study import without_hydra
from phaseavg.runs.folder import in_progress, read_failure
from phaseavg.runs.record import DAMAGED, damage, flattened, has_ended, read_record
from phaseavg.runs.records import row_of
from phaseavg.runs.result import cost, errors
from phaseavg.sweep.cells import Cell, cells_of, read_request, runs_of
from phaseavg.sweep.composing import composing

OVERRIDE = re.compile(r"[+~]{0,2}[\w.@/]+=.*")

PARTS_OF_CELLS = {  # what a cell's name says, by how many parts it has
    2: ("table", "column"),
    3: ("table", "model", "column"),
    4: ("table", "dataset", "model", "column"),
}

NEAREST = 6
"""Of the choices that are named where there are more."""


def phase_ends(config: Mapping[str, Any]) -> list[int]:
    """Return after how many epochs each phase of a recorded config ends.

    Returns:
        The ends in their order; none where `epochs` and `divisor` of its schedule do not say them.
    """
    schedule = config.get("schedule")
    if not isinstance(schedule, Mapping):
        return []
    lengths, divisor = schedule.get("epochs"), schedule.get("divisor", 1)
    if not isinstance(lengths, list) or type(divisor) is not int or divisor < 1:
        return []
    if any(type(length) is not int or length < 1 or length % divisor for length in lengths):
        return []
    return list(accumulate(length // divisor for length in lengths))


@dataclass
class Course:
    """One run as far as it has come.

    Attributes:
        folder: of the run or the record.
        config: as recorded.
        history: its metrics, a mapping per epoch.
        result: its outcome; empty if it has none yet.
        errors: test errors (%) as in `result.json`, as far as it is; nothing before a test.
        seconds: that it has taken so far.
        execution: how it was computed, in words; nothing if it has not ended.
    """

    folder: Path
    config: dict[str, Any]
    history: list[dict[str, Any]]
    result: dict[str, Any]
    errors: dict[str, Any]
    seconds: float
    execution: str

    @property
    def ends(self) -> list[int]:
        """After how many epochs each of its phases ends; none where that is not known."""
        return phase_ends(self.config)

    @property
    def status(self) -> str:
        """What has come of it, and how far it is, in words."""
        if self.result.get("status") == "diverged":
            return f"diverged in epoch {self.result['epoch']}"
        if self.result:
            return "finished"
        far = f"epoch {len(self.history)} of {self.ends[-1] if self.ends else 'unknown'}"
        if in_progress(self.folder):
            return f"in training, {far}"
        return f"{'failed' if read_failure(self.folder) else 'not finished'}, {far}"

    @property
    def metrics(self) -> pd.DataFrame:
        """Its metrics, a row per epoch; with the columns that are drawn in any case."""
        drawn = ["epoch", "train.loss", *ERRORS]
        frame = pd.DataFrame([flattened(line) for line in self.history])
        return frame.reindex(columns=frame.columns.union([*drawn, "replaced"]))

    @property
    def pair(self) -> tuple[Any, ...]:
        """What another run has to have in common if their difference is to count."""
        data = json.dumps(self.config["dataset"], sort_keys=True)
        return self.config["seed"], self.execution, data


@dataclass
class Member:
    """What is compared: a run, or a cell with all its seeds.

    Attributes:
        name: as it was asked for.
        courses: its runs, by seed.
        seeds: how many there are to be.
        letter: what it is called in tables and picture.
    """

    name: str
    courses: list[Course]
    seeds: int = 1
    letter: str = field(default="")

    @property
    def status(self) -> str:
        """What has come of its runs, in words."""
        words = [course.status for course in self.courses]
        if self.seeds == 1:
            return words[0]
        counts = [f"{words.count(word)} {word}" for word in dict.fromkeys(words)]
        absent = self.seeds - len(words)
        return "; ".join([*counts, *([f"{absent} not begun"] if absent else [])])

    @property
    def ended(self) -> list[Course]:
        """Those of its runs that have finished."""
        return [c for c in self.courses if c.result.get("status") == "finished"]

    @property
    def counted(self) -> list[Course]:
        """Those that numbers are of: the finished ones, and of a single run what there is."""
        return self.courses if self.seeds == 1 else self.ended


def read_course(folder: Path) -> Course:
    """Return a run by its folder, whether or not it has ended.

    Raises:
        UserError: if it is damaged.
    """
    try:
        record = read_record(folder)
        config, history = record.config, record.metrics
        config["schedule"], config["dataset"], config["seed"]
        found = errors(history, {}) if history else {}
        seconds = cost(history)["seconds"]["total"]
        execution = execution_of(row_of(record)) if record.result else ""
    except DAMAGED as error:
        raise UserError(damage(folder, error)) from error
    return Course(folder, config, history, record.result, found, seconds, execution)


def read_members(arguments: Sequence[str], conf: Path) -> list[Member]:
    """Return what is to be compared, in its order.

    Args:
        arguments: folders of runs or records; names of cells, such as `t1a/learnt`,
            `t1a/cnn13/learnt` or `t1a/cifar100/cnn13/learnt`; and overrides, which hold for all
            cells.
        conf: the folder of the configs.

    Raises:
        UserError: if there is no such run or cell, it has no record, or one is damaged.
    """
    overrides = [a for a in arguments if OVERRIDE.fullmatch(a) and not Path(a).is_dir()]
    members = []
    for name in (a for a in arguments if a not in overrides):
        if Path(name).is_dir():
            members.append(_run(Path(name)))
        else:
            members += _cells(name, overrides, conf)
    if not members:
        raise UserError("RUN: is missing; name folders of runs, or cells such as t1a/learnt")
    for number, member in enumerate(members):
        member.letter = letter(number)
    return members


def letter(number: int) -> str:
    """Return a, b, …, z, aa, ab, …: what the member of a place, counted from 0, is called."""
    more, last = divmod(number, 26)
    return (letter(more - 1) if more else "") + chr(ord("a") + last)


def _run(folder: Path) -> Member:
    if not (folder / "config.yaml").is_file():
        runs = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        choices = f"; choices in it: {_some(folder.name, runs)}" if runs else ""
        raise UserError(f"{folder}: is no folder of a run{choices}")
    return Member(folder.resolve().name, [read_course(folder)])


def _some(name: str, choices: Sequence[str]) -> str:
    """Return in words some of many choices, the nearest ones to what was typed."""
    shown = list(choices)
    if len(shown) > NEAREST:
        near = difflib.get_close_matches(name, choices, NEAREST, cutoff=0)
        shown = [*near, f"… ({len(choices)} in all)"]
    return ", ".join(shown)


def _name(cell: Cell, parts: int) -> str:
    return "/".join(getattr(cell, key) for key in PARTS_OF_CELLS[parts])


def _cells(name: str, overrides: Sequence[str], conf: Path) -> list[Member]:
    """Return the cells of a name: of each network one, of those of which there is anything."""
    table = name.partition("/")[0]
    parts = len(name.split("/"))
    with composing(conf) as (options, compose):
        tables = [option for option in options if option != "none"]
        if table not in tables or parts not in PARTS_OF_CELLS:
            path = Path(name)
            beside = sorted(found.parent.name for found in path.parent.glob("*/config.yaml"))
            raise UserError(
                f"{name}: there is no such folder; choices in {path.parent}: "
                f"{_some(path.name, beside)}"
                if beside
                else f"{name}: is neither the folder of a run nor a cell; choices: TABLE/COLUMN or "
                f"TABLE/MODEL/COLUMN with a table of {', '.join(tables)}"
            )
        asked = without_hydra([f"table={table}", *overrides])
        request = read_request(asked, options, compose)
        everything = cells_of(table, request.tables[table], request.common)
        if not any(_name(cell, parts) == name for cell in everything):
            choices = list(dict.fromkeys(_name(cell, parts) for cell in everything))
            raise UserError(f"{name}: there is no such cell; choices: {_some(name, choices)}")
        cells = [cell for cell in request.cells if _name(cell, parts) == name]
        runs = runs_of(cells, request.seeds, compose)
    found = []
    for cell in cells:
        folders = [
            next(filter(has_ended, run.settings.places), run.settings.run_folder)
            for run in runs.values()
            if cell in run.cells
        ]
        courses = [read_course(path) for path in folders if (path / "config.yaml").is_file()]
        if courses:
            courses.sort(key=lambda course: course.config["seed"])
            found.append(Member("/".join(key_of(cell)), courses, len(folders)))
    if not found:
        narrowed = [
            f"{key}={value}"
            for key, value in zip(PARTS_OF_CELLS[parts], name.split("/"), strict=True)
        ]
        sweep = shlex.join(["python", "train.py", "-m", *overrides, *narrowed])
        raise UserError(f"{name}: there is no run of it yet; {sweep}")
    return found
