"""Imports follow the layers: report → sweep → training → runs → config → all others."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

ALONE = ("averaging", "optim", "atomic", "phases", "__init__")
"""What needs only torch and the standard library."""
ROOMS = ("report", "sweep", "training", "runs", "config")
FILES = sorted((REPOSITORY / "phaseavg").rglob("*.py"))


def imported_by(text: str) -> set[str]:
    """Return the full names of the modules that a file imports, and of what it takes from them."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_imports_from_a_higher_layer_or_an_unneeded_package(path: Path) -> None:
    text = path.read_text()
    room = path.relative_to(REPOSITORY / "phaseavg").parts[0].removesuffix(".py")
    names = [name.split(".") for name in imported_by(text)]
    imported = {name[1] for name in names if name[0] == "phaseavg" and len(name) > 1}
    if room in ROOMS:
        assert not imported & set(ROOMS[: ROOMS.index(room)])
    else:
        assert not imported & {*ROOMS[:-1]} or room in ("cli", "tracking")
    if room in ALONE:
        assert {name[0] for name in names} - sys.stdlib_module_names <= {"torch", "phaseavg"}
        assert imported <= {room, "atomic"}
    assert "TYPE_CHECKING" not in text
