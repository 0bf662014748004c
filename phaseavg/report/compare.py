"""Runs beside each other: what their configs differ in, their errors, and their curves."""

import difflib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from phaseavg.errors import UserError
from phaseavg.report.cells import execution_of, key_of
from phaseavg.report.figures.drawing import COLOURS, new_picture, plain
from phaseavg.report.phase_ends import ERRORS
from phaseavg.report.statistics import SAME, differences, mean_and_deviation, mean_with_interval
from phaseavg.report.study import composing, without_hydra
from phaseavg.runs.folder import in_progress, read_failure
from phaseavg.runs.record import DAMAGED, damage, flattened, has_ended, read_record
from phaseavg.runs.records import row_of
from phaseavg.runs.result import cost, errors
from phaseavg.sweep.cells import Cell, cells_of, read_request, runs_of

OVERRIDE = re.compile(r"[+~]{0,2}[\w.@/]+=.*")

PARTS_OF_CELLS = {  # what a cell's name says, by how many parts it has
    2: ("table", "column"),
    3: ("table", "model", "column"),
    4: ("table", "dataset", "model", "column"),
}

NEAREST = 6
"""Of the choices that are named where there are more."""

SHAPES = ("-", "--", "-.", ":")


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


def listed(members: Sequence[Member]) -> pd.DataFrame:
    """Return what is compared and what has come of it: columns run and status."""
    rows = [{"": m.letter, "run": m.name, "status": m.status} for m in members]
    return pd.DataFrame(rows)


def settings_of(course: Course) -> dict[str, str]:
    """Return a run's config by the names that an override has, and how it was computed."""
    flat = pd.json_normalize(course.config).iloc[0]
    texts = {key: "null" if value is None else str(value) for key, value in flat.items()}
    return texts | ({"computed by": course.execution} if course.execution else {})


def differing(members: Sequence[Member]) -> pd.DataFrame:
    """Return the settings that are not the same everywhere: a row each, a column per member.

    What a run has not got is left blank; a seed differs only between members.
    """
    columns = {}
    for member in members:
        every = [settings_of(course) for course in member.courses]
        keys = dict.fromkeys(key for settings in every for key in settings)
        columns[member.letter] = {
            key: ", ".join(dict.fromkeys(settings[key] for settings in every if key in settings))
            for key in keys
        }
    frame = pd.DataFrame(columns).fillna("")
    frame = frame[frame.nunique(axis=1) > 1]
    return frame.rename_axis("setting").reset_index()


def _outcomes(member: Member) -> pd.DataFrame:
    """Return of each run that counts its errors (%) and seconds, by what makes pairs."""
    rows, pair = [], [*SAME, "data"]
    for course in member.counted:
        row = {
            "last": course.errors.get("test_error"),
            "best": course.errors.get("best_test_error"),
            "after a BN pass": course.errors.get("with_bn_pass", {}).get("test_error"),
            "seconds": course.seconds,
        }
        rows.append(dict(zip(pair, course.pair, strict=True)) | row)
    columns = [*pair, "last", "best", "after a BN pass", "seconds"]
    frame = pd.DataFrame(rows, columns=columns).set_index(pair)
    return frame.astype(float)


def summarised(members: Sequence[Member]) -> pd.DataFrame:
    """Return the errors of each: a row per member, mean ± sample deviation over its seeds.

    Columns: n; last and best test error (%), and the last after a BatchNorm pass, as in
    `result.json`; seconds; the difference of the last error to the first member's, of the runs with
    the same seed, execution and data, with its 95 % t interval. Runs of several seeds count once
    they have finished; a single one as far as it is.
    """
    rows, first = [], None
    for member in members:
        found = _outcomes(member)
        row = {"": member.letter, "n": len(found)}
        for key in ("last", "best", "after a BN pass"):
            row[key] = mean_and_deviation(found[key].dropna())
        row["seconds"] = f"{found['seconds'].mean():,.0f}" if len(found) else ""
        whole = {course.pair for course in member.ended}
        last = found["last"][[pair in whole for pair in found.index]]
        last = last[~last.index.duplicated()]
        if first is None:
            first, against = last, f"last − {member.letter}"
            row[against] = ""
        else:
            found = differences(last, first)
            row[against] = mean_with_interval(found) + (f" ({len(found)})" if len(found) else "")
        rows.append(row)
    return pd.DataFrame(rows)


def at_phase_ends(members: Sequence[Member]) -> pd.DataFrame:
    """Return the test errors (%) at the ends of phases: a row per member and end."""
    rows = []
    for member in members:
        ends = [
            {**flattened(end), "phase": number}
            for course in member.counted
            for number, end in enumerate(course.errors.get("phases", []), start=1)
        ]
        frame = pd.DataFrame(ends, columns=["phase", "epoch", "replaced", *ERRORS])
        for (phase, epoch), lines in frame.groupby(["phase", "epoch"]):
            row = {"": member.letter, "end of phase": phase, "epoch": epoch, "n": len(lines)}
            for key, label in ERRORS.items():
                row[label] = mean_and_deviation(lines[key].dropna())
            rows.append(row)
    return pd.DataFrame(rows)


def figure(members: Sequence[Member]) -> Figure:
    """Return test error (%) and training loss against epochs, with the phases' boundaries.

    A cell's runs are thin lines with their mean over the epochs that all of them have.
    """
    picture = new_picture(8.5, 6.5 + 0.2 * len(members))
    above, below = picture.subplots(2, 1, sharex=True)
    boundaries, handles, markers = set(), [], set()
    # Runs that have epochs in common lie on each other: through the gaps one sees those below.
    for member, colour, shape in zip(members, cycle(COLOURS), cycle(SHAPES), strict=False):
        look = {"color": colour, "linestyle": shape}
        single = len(member.courses) == 1
        frames = [course.metrics for course in member.courses]
        boundaries |= {end for course in member.courses for end in course.ends[:-1]}
        for axes, key in ((above, "weights.error"), (below, "train.loss")):
            every = [frame.set_index("epoch")[key].dropna() for frame in frames]
            drawn = [line for line in every if len(line)]
            for line in drawn:
                thin = {"color": colour, "linewidth": 0.6, "alpha": 0.5}
                axes.plot(line.index, line, **({**look, "linewidth": 1.8} if single else thin))
            if len(drawn) > 1:
                mean = pd.concat(drawn, axis=1).dropna().mean(axis=1)
                axes.plot(mean.index, mean, **look, linewidth=2)
        ends = pd.concat(frames)
        ends = ends[ends["replaced"].notna()].groupby("epoch")
        for key, marker in MARKERS.items():
            errors_at = ends[key].mean().dropna()
            if len(errors_at):
                markers.add(key)
                above.plot(errors_at.index, errors_at, marker, color=colour, markersize=6)
        name = f"{member.letter}: {member.name}"
        if not single:
            name += ", each seed and their mean"
        if len(member.ended) < member.seeds:
            name += f" ({member.status})"
        handles.append(Line2D([], [], **look, linewidth=2, label=name))
    for key, marker in MARKERS.items():
        if key in markers:
            label = f"{ERRORS[key]}, at phase ends"
            handles.append(Line2D([], [], color="black", marker=marker, linewidth=0, label=label))
    for axes, label in ((above, "test error (%)"), (below, "training loss")):
        for epoch in boundaries:
            axes.axvline(epoch + 0.5, color="black", linestyle=":", linewidth=0.8)
        plain(axes).set_ylabel(label)
    if boundaries:
        handles.append(
            Line2D([], [], color="black", linestyle=":", linewidth=0.8, label="end of a phase")
        )
    below.set_xlabel("epoch")
    below.set_xlim(left=0.5)
    picture.legend(
        handles=handles, loc="outside lower left", fontsize=8, frameon=False, handlelength=4
    )
    return picture


MARKERS = {"bn.error": "x", "average.error": "o"}
