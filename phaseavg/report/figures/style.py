"""The look of all figures, and how they become files."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0b6fa4", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#4c566a", "#be185d", "#0f766e")
"""Distinct for the colour-blind, each with a contrast of 4.5 or more on white."""

FORMATS = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}
"""Every figure is written in these formats; the options give equal files for equal numbers."""


def new_picture(width: float = 8, height: float = 4.5) -> Figure:
    """Return an empty figure of a size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> Axes:
    """Remove the upper and right spines; return the axes."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def rendered(picture: Figure, name: str) -> dict[str, bytes]:
    """Return the content of a picture's files, by format.

    Args:
        picture: to be drawn.
        name: of the picture, from which the ids in an SVG follow.
    """
    files = {}
    for kind, options in FORMATS.items():
        content = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            picture.savefig(content, format=kind, **options)
        files[kind] = content.getvalue()
    return files
