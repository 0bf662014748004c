"""Runs beside each other: what their configs differ in, their errors, and their curves."""

from collections.abc import Sequence
from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from phaseavg.report.figures.drawing import COLOURS, new_picture, plain
from phaseavg.report.members import Course, Member
from phaseavg.report.phase_ends import ERRORS
from phaseavg.report.statistics import SAME, differences, mean_and_deviation, mean_with_interval
from phaseavg.runs.record import flattened

SHAPES = ("-", "--", "-.", ":")


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
