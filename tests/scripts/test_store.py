"""`make store` says what is there and what needs it, and removes the rest."""

import sys
from pathlib import Path

import pytest
import torch

from phaseavg.runs.store import Store
from scripts import store as script


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a store with two states, of which a run needs the first, and one in training."""
    found = Store(tmp_path / "shared")
    snapshot = tmp_path / "snapshot-0001-9a129038d9a00aed.bin"
    snapshot.write_bytes(b"weights")
    for epoch, files in ((8, [snapshot]), (16, [])):
        found.save(
            f"key{epoch}",
            "cpu",
            {"weights": torch.zeros(250_000)},
            files,
            name=f"digits-cnn13-sgd-seed0-epoch{epoch}",
            epoch=epoch,
            averages={"a": "carried0"},
            looks={},
        )
    found.need("key8", {"run-1": [tmp_path / "run-1"]})
    trajectory = found.trajectories / "digits-cnn13-sgd-seed0-abc-cpu"
    found.write(trajectory / "path.json", {"keys": {"1": "key1"}})
    (trajectory / "checkpoint-000000024-0.pt").touch()
    return found


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["store.py", *map(str, arguments)])
    return script.main()


def test_a_store_is_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, store.folder) == 0
    head, _, first, second, training, last = capsys.readouterr().out.splitlines()
    assert head.split("|")[1].strip() == "state after"
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells == ["digits-cnn13-sgd-seed0-epoch8", "1", "1.0", "0.0", "run-1"]
    cells = [cell.strip() for cell in second.split("|")[1:-1]]
    assert cells == ["digits-cnn13-sgd-seed0-epoch16", "1", "1.0", "", ""]
    assert training == "in training: digits-cnn13-sgd-seed0-abc-cpu, saved after step 24"
    assert last.startswith(f"{store.folder}: 0.002 GB; the disk has room for ")


def test_what_is_needed_stays_and_the_rest_goes(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, store.folder, "--clean") == 0
    out = capsys.readouterr().out
    assert out.startswith("1 states removed, 0.001 GB\n")
    assert "in training" not in out  # for no run that is known
    assert [branch.epoch for branch in store.branches()] == [8]
    assert typed(monkeypatch, store.folder, "--clean-all") == 0
    assert capsys.readouterr().out.splitlines()[1] == "no states"
    assert store.branches() == []


def test_where_nothing_is_shared_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, tmp_path / "nothing") == 0
    assert "there is no such folder; nothing has been shared" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
