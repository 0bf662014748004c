"""Style all figures and render them to files."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0b6fa4", "#c2410c", "#15803d", "#7c3aed", "#a16207", "#4c566a", "#be185d", "#0f766e")
"""Colour-blind safe colours with a contrast of 4.5 or more on white."""

FORMATS = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}
"""The formats of every figure; with these options, equal numbers give equal files."""


def new_picture(width: float = 8, height: float = 4.5) -> Figure:
    """Return an empty figure; width and height are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def plain(axes: Axes) -> Axes:
    """Remove the upper and right spines; return the axes."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def render(picture: Figure, name: str) -> dict[str, bytes]:
    """Render a figure; return the content of its files by format.

    Args:
        picture: the figure.
        name: the figure's name, which determines the ids in an SVG.
    """
    files = {}
    for kind, options in FORMATS.items():
        content = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": name}):
            picture.savefig(content, format=kind, **options)
        files[kind] = content.getvalue()
    return files
