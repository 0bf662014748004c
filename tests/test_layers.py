"""Imports follow the layers: report → sweep → training → runs → config → all others."""

import ast
from pathlib import Path

import pytest
from conftest import REPOSITORY

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
def test_no_file_imports_from_a_higher_layer(path: Path) -> None:
    text = path.read_text()
    room = path.relative_to(REPOSITORY / "phaseavg").parts[0].removesuffix(".py")
    names = [name.split(".") for name in imported_by(text)]
    imported = {name[1] for name in names if name[0] == "phaseavg" and len(name) > 1}
    if room in ROOMS:
        assert not imported & set(ROOMS[: ROOMS.index(room)])
    else:
        assert not imported & {*ROOMS[:-1]} or room in ("cli", "tracking")
    assert "TYPE_CHECKING" not in text
