"""phaseavg.averaging and phaseavg.optim import only torch and the standard library."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

FILES = [
    *(REPOSITORY / "phaseavg" / "averaging").glob("*.py"),
    *(REPOSITORY / "phaseavg" / "optim").glob("*.py"),
    REPOSITORY / "phaseavg" / "atomic.py",
    REPOSITORY / "phaseavg" / "phases.py",
    REPOSITORY / "phaseavg" / "__init__.py",
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_torch_and_the_standard_library_are_imported(path: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    foreign = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    siblings = {name for name in foreign if name.startswith(f"phaseavg.{path.parent.name}")}
    others = foreign - siblings - {"phaseavg.atomic"}
    assert {name.split(".")[0] for name in others} <= {"torch"}
