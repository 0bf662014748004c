"""What all figures have in common: their looks, and the files that each is written to."""

import fcntl
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phaseavg.errors import UserError
from phaseavg.runs.files import write_atomically
from phaseavg.sweep.cells import key_of, parsed, values_of

COLOURS = ("#0b6fa4", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#4c566a", "#be185d", "#0f766e")
"""Told apart by the colour-blind, and of contrast 4.5 and more on white."""

INDEX = "figures.json"
"""In a folder of figures: title, caption and what is missing of each, by its name, in order."""

FORMATS = {
    "png": {"dpi": 150},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""Of a picture, with what else is said of each, so that the same numbers give the same bytes."""

WRITTEN = ("png", "svg")
"""Those that every figure is written in."""


@dataclass
class Drawing:
    """A figure with the numbers that it shows.

    Attributes:
        name: of its files.
        title: what it shows, in a few words.
        caption: how to read it, from what it was made, and what it has cost.
        picture: the figure; None if there is nothing to draw.
        data: all numbers in it.
        missing: what there was nothing of, and how to have it; nothing if it is whole.
    """

    name: str
    title: str
    caption: str
    picture: Figure | None
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    missing: str = ""


def place_of(overrides: Sequence[str]) -> Path:
    """Return where in the results figures are: those of a preset in a folder of its name."""
    presets = [values_of(o)[0] for o in parsed(overrides) if key_of(o) == "preset"]
    return Path("figures", *presets)


def new_picture(width: float = 8, height: float = 4.5) -> Figure:
    """Return an empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> Axes:
    """Return axes without the lines that say nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def blank(name: str, title: str, missing: str) -> Drawing:
    """Return a figure that cannot be drawn yet, with what it lacks and how to have it."""
    return Drawing(name, title, "", None, missing=missing)


def rendered(picture: Figure, name: str, kind: str) -> bytes:
    """Return a picture as a file's content, the same for the same picture.

    Args:
        picture: to be drawn.
        name: of the picture, from which the ids in an SVG follow.
        kind: of the file, as its ending has it.
    """
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        picture.savefig(content, format=kind, **FORMATS[kind])
    return content.getvalue()


def write(drawing: Drawing, output: Path) -> list[Path]:
    """Write a figure as SVG and PNG, its numbers as CSV, a note in `INDEX`; return the files.

    The same numbers give the same bytes. Of a figure without data nothing is written.

    Raises:
        UserError: if they cannot be written.
    """
    if drawing.picture is None:
        return []
    output.mkdir(parents=True, exist_ok=True)
    place, files = f"--output={output}", []
    for kind in WRITTEN:
        files.append(output / f"{drawing.name}.{kind}")
        write_atomically(files[-1], rendered(drawing.picture, drawing.name, kind), place)
    numbers = output / f"{drawing.name}.csv"
    if drawing.data.empty:
        numbers.unlink(missing_ok=True)
    else:
        text = drawing.data.to_csv(index=False, lineterminator="\n")
        write_atomically(numbers, text.encode(), place)
        files.append(numbers)
    note(drawing, output)
    return files


def note(drawing: Drawing, output: Path) -> None:
    """Note title, caption and what is missing of a figure in the `INDEX` of a folder.

    Raises:
        UserError: if that file is damaged, or cannot be written.
    """
    path, index = output / INDEX, {}
    folder = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # figures may be drawn side by side
        if path.exists():
            index = dict(json.loads(path.read_text()))
        index[drawing.name] = {
            "title": drawing.title,
            "caption": drawing.caption,
            "missing": drawing.missing,
        }
        text = json.dumps(dict(sorted(index.items())), ensure_ascii=False, indent=1) + "\n"
        write_atomically(path, text.encode(), f"--output={output}")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); remove it and draw the figures anew"
        ) from error
    finally:
        os.close(folder)
