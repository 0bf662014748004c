"""Imports follow the layers: report → sweep → training → runs → config → all others."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

ROOMS = ("report", "sweep", "training", "runs", "config")
FILES = sorted((REPOSITORY / "phaseavg").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_file_imports_from_a_higher_layer(path: Path) -> None:
    text = path.read_text()
    room = path.relative_to(REPOSITORY / "phaseavg").parts[0].removesuffix(".py")
    imported = set(re.findall(r"^\s*(?:from|import) phaseavg\.(\w+)", text, re.MULTILINE))
    if room in ROOMS:
        assert not imported & set(ROOMS[: ROOMS.index(room)])
    else:
        assert not imported & {*ROOMS[:-1]} or room in ("cli", "tracking")
    assert "TYPE_CHECKING" not in text
