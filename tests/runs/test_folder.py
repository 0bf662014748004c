"""Run folders: files are written atomically, and damaged files are renamed."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from made_records import made_result
from torch import nn

from phaseavg.errors import Interrupted, NotStarted, UserError
from phaseavg.runs import folder as folder_module
from phaseavg.runs.files import write_atomically
from phaseavg.runs.folder import (
    RunFolder,
    in_progress,
    read_failure,
    read_result,
    record_failure,
)
from phaseavg.runs.weights import write_weights


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, b"new"),
        lambda path: write_weights(nn.Linear(1, 1), path, "a"),
    ],
    ids=["bytes", "weights"],
)
def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    path = tmp_path / "run" / "written"
    path.parent.mkdir()
    path.write_bytes(b"old")

    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"run/written.*No space left on device"):
        write(path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_is_restored_exactly(tmp_path: Path) -> None:
    state = {"step": 3, "weights": {"a": torch.randn(4)}, "history": [{"epoch": 1, "x": 0.1}]}
    with RunFolder(tmp_path / "run") as folder:
        assert folder.load_checkpoint() is None
        folder.save_checkpoint(3, state)
        loaded = folder.load_checkpoint()
    assert loaded is not None
    assert torch.equal(loaded["weights"].pop("a"), state["weights"].pop("a"))
    assert loaded == {**state, "run_id": "run", "files": []}


def test_the_older_of_two_checkpoints_is_the_fallback(
    tmp_path: Path,
) -> None:
    with RunFolder(tmp_path) as folder:
        for step in (9, 10, 100):
            folder.save_checkpoint(step, {"step": step})
        older, latest = sorted(tmp_path.glob("checkpoint-*.pt"))
        assert folder.load_checkpoint()["step"] == 100
        latest.write_bytes(latest.read_bytes()[:-1])
        assert folder.load_checkpoint()["step"] == 10
        assert latest.with_name(f"{latest.name}.damaged").exists()
        older.write_bytes(b"")
        assert folder.load_checkpoint() is None


def snapshot(folder: RunFolder, number: int) -> Path:
    """Write a snapshot file, named by its checksum."""
    content = bytes([number]) * 1000
    checksum = hashlib.sha256(content).hexdigest()[:16]
    path = folder.path / "snapshots" / f"snapshot-{number:04d}-{checksum}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def snapshots_of(folder: RunFolder) -> list[Path]:
    return sorted(folder.path.glob("snapshots/*.pt"))


def test_unreferenced_snapshots_are_removed(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        paths = [snapshot(folder, number) for number in range(4)]
        folder.save_checkpoint(1, {"step": 1}, paths[:2])
        assert snapshots_of(folder) == paths[:2]  # the others are of a start that was cut
        paths[2:] = [snapshot(folder, number) for number in (2, 3)]
        folder.save_checkpoint(2, {"step": 2}, paths[1:])
        assert snapshots_of(folder) == paths
        folder.save_checkpoint(3, {"step": 3}, paths[2:])
        assert snapshots_of(folder) == paths[1:]
        folder.save_checkpoint(4, {"step": 4})
        assert snapshots_of(folder) == paths[2:]
        folder.save_checkpoint(5, {"step": 5})
        assert snapshots_of(folder) == []


def test_a_new_process_keeps_the_snapshots_of_unread_checkpoints(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        paths = [snapshot(folder, 0)]
        folder.save_checkpoint(1, {"step": 1}, paths)
        paths.append(snapshot(folder, 1))
        folder.save_checkpoint(2, {"step": 2}, paths)
    with RunFolder(tmp_path) as folder:
        assert folder.load_checkpoint()["step"] == 2
        max(tmp_path.glob("checkpoint-*.pt")).unlink()
        folder.save_checkpoint(3, {"step": 3})  # beside that of step 1, which was never read
        assert snapshots_of(folder) == paths
        folder.save_checkpoint(4, {"step": 4})
        assert snapshots_of(folder) == []


@pytest.mark.parametrize("damage", ["missing", "changed", "cut"])
def test_a_damaged_snapshot_falls_back_to_the_previous_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    with RunFolder(tmp_path) as folder:
        older = snapshot(folder, 0)
        folder.save_checkpoint(1, {"step": 1}, [older])
        newer = snapshot(folder, 1)
        folder.save_checkpoint(2, {"step": 2}, [older, newer])
        if damage == "missing":
            newer.unlink()
        else:
            newer.write_bytes(b"x" * 1000 if damage == "changed" else newer.read_bytes()[:-1])
        assert folder.load_checkpoint()["step"] == 1
        assert f"{newer} is damaged: checkpoint-000000002-" in capsys.readouterr().out
        assert len(list(tmp_path.glob("checkpoint-000000002-*.damaged"))) == 1


def test_a_checkpoint_of_another_run_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(tmp_path / "seed0") as folder:
        folder.save_checkpoint(3, {"step": 3})
    with RunFolder(tmp_path / "seed1") as folder:
        (checkpoint,) = (tmp_path / "seed0").glob("*.pt")
        copied = shutil.copy(checkpoint, folder.path)
        assert folder.load_checkpoint() is None
        assert f"{copied} belongs to another run (seed0) or " in capsys.readouterr().out
        assert [path.suffix for path in folder.path.glob("checkpoint-*")] == [".damaged"]


INVALID = {
    "of another run": json.dumps(made_result("other", 5.0)),
    "without keys": json.dumps({"status": "finished", "run_id": "run"}),
    "half": '{"status": "fini',
}


@pytest.mark.parametrize("content", INVALID.values(), ids=INVALID)
def test_an_invalid_result_is_renamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(content)
    assert read_result(folder) is None
    assert capsys.readouterr().out.startswith(f"{folder}/result.json is ")
    assert [path.name for path in folder.iterdir()] == ["result.json.damaged"]


def test_an_invalid_result_that_cannot_be_renamed_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", Mock(side_effect=OSError(30, "Read-only file system")))
    (tmp_path / "result.json").write_text(INVALID["half"])
    assert read_result(tmp_path) is None
    assert "cannot be renamed to *.damaged (Read-only file system)" in capsys.readouterr().out


def test_a_failure_is_recorded_or_reported_as_damaged(tmp_path: Path) -> None:
    assert read_failure(tmp_path / "run") is None
    record_failure(tmp_path / "run", "no room")
    assert read_failure(tmp_path / "run") == "no room"
    (tmp_path / "run/failure.json").write_text('{"err')
    assert "cannot be read" in str(read_failure(tmp_path / "run"))


def test_loading_never_executes_code(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    buffer = io.BytesIO()
    torch.save({"step": Malicious()}, buffer)
    content = buffer.getvalue()
    checksum = hashlib.sha256(content).hexdigest()[:16]
    with RunFolder(tmp_path / "run") as folder:
        (folder.path / f"checkpoint-000000001-{checksum}.pt").write_bytes(content)
        assert folder.load_checkpoint() is None
        assert len(list(folder.path.glob("*.pt.damaged"))) == 1
    assert not (tmp_path / "executed").exists()


def test_metrics_with_nan_are_rejected(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder, pytest.raises(ValueError, match="JSON"):
        folder.write_metrics([{"train_loss": float("nan")}])


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    own = (".result.json.123.4.part", f"snapshots/.snapshot-0001-{'0' * 16}.pt.1.2.part")
    mine = (".mine.part", "mine/.result.json.123.4.part")
    for name in (*own, *mine):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    with RunFolder(tmp_path):
        left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.part")}
    assert left == set(mine)


def test_a_second_process_cannot_lock_the_folder(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path),
        pytest.raises(UserError, match="another process"),
        RunFolder(tmp_path),
    ):
        pass
    with RunFolder(tmp_path):
        pass


def test_a_failed_runs_lock_does_not_outlive_it_in_its_workers(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path) as run:
        inherited = os.dup(run._lock.fileno())  # as in a forked worker
        1 / 0  # noqa: B018
    assert not in_progress(tmp_path)
    os.close(inherited)


def test_looking_at_a_lock_does_not_stop_a_run_that_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder(tmp_path):
        pass
    lock = (tmp_path / ".lock").open("r+")  # as `in_progress` for a moment
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    monkeypatch.setattr(folder_module.time, "sleep", lambda seconds: lock.close())
    with RunFolder(tmp_path):
        assert in_progress(tmp_path)


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = Mock(side_effect=OSError(38, "Function not implemented"))
    monkeypatch.setattr(folder_module.fcntl, "flock", fails)
    with pytest.raises(UserError, match=f"{tmp_path}: its file system has no locks"):
        RunFolder(tmp_path).__enter__()


def test_a_checkpoint_that_cannot_be_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder(tmp_path) as folder:
        folder.save_checkpoint(1, {"step": 1})
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", Mock(side_effect=OSError(116, "Stale file handle")))
            with pytest.raises(UserError, match=r"cannot be read \(Stale file handle\)"):
                folder.load_checkpoint()
        assert folder.load_checkpoint()["step"] == 1


def test_a_finished_run_has_a_result_and_neither_checkpoints_nor_snapshots(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.save_checkpoint(1, {"step": 1}, [snapshot(folder, 1)])
        folder.finish(result := made_result(tmp_path.name, 5.0))
        assert read_result(tmp_path) == result
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "result.json"}
        folder.reopen()
    assert read_result(tmp_path) is None
    assert json.loads((tmp_path / "result.json.previous").read_text()) == result


def test_a_signal_ends_the_wait_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps = []

    def interrupt(seconds: float) -> None:
        sleeps.append(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(folder_module.time, "sleep", interrupt)
    message = f"interrupted while waiting for {tmp_path / 'run'}"
    with RunFolder(tmp_path / "run"), pytest.raises(Interrupted, match=message):
        RunFolder(tmp_path / "run", wait=True).__enter__()
    assert len(sleeps) == 1
    with RunFolder(tmp_path / "run"):  # the lock is free
        pass


def test_the_deadline_ends_the_wait_for_another_process(tmp_path: Path) -> None:
    message = f"out of time while waiting for {tmp_path / 'run'}"
    with RunFolder(tmp_path / "run"), pytest.raises(NotStarted, match=message):
        RunFolder(tmp_path / "run", wait=True, deadline=0).__enter__()
