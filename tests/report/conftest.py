"""A page that the tests of its content and those in a browser look at."""

from pathlib import Path

import pytest
from made_page import build, fill


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a page; it lies two folders below what it is made of."""
    root = tmp_path_factory.mktemp("page")
    fill(root)
    return build(root)
