"""Scripts report an output folder that cannot be created."""

import importlib
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

NOWHERE = "/proc/nowhere"
RECORDS = str(REPOSITORY / "results/demo/records")
ONE_RECORD = str(next(Path(RECORDS).iterdir()))

CELL = ("scale=digits", "table=t1a", "model=cnn13", "column=learnt", "seed=0")

TYPED = {
    "figures": ("fig6", "--output", NOWHERE),
    "tables": (*CELL, "--output", NOWHERE),
    "compare": (ONE_RECORD, "--output", f"{NOWHERE}/a"),
    "records": ("--records", NOWHERE),
}


@pytest.mark.parametrize("name", TYPED)
def test_a_folder_that_cannot_be_created_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
) -> None:
    main = importlib.import_module(f"scripts.{name}").main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *TYPED[name]])
    assert main() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{name}.py: ")
    assert NOWHERE in err
    assert err.count("\n") == 1, err
