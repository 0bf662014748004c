"""`make wandb-sync` sends each offline run once, and says what it did."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from phaseavg.runs import upload
from phaseavg.runs.folder import RunFolder
from scripts import wandb_sync as script

STAND_IN = """\
import pathlib, signal, sys
pathlib.Path("calls").open("a").write(" ".join(pathlib.Path(p).stem for p in sys.argv[1:]) + "\\n")
print("wandb: Syncing", len(sys.argv) - 1, "run(s):")
for path in map(pathlib.Path, sys.argv[1:]):
    print("wandb:  ", path)
    if "slow" in path.name:
        signal.pause()
    elif ("bad" in path.name or "worse" in path.name):
        print(f"wandb: ERROR [phaseavg/{path.stem[4:]}] permission denied")
    else:
        path.with_name(path.name + ".synced").touch()
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of runs; what is sent goes to a stand-in for `wandb sync`."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(upload, "SYNC", (sys.executable, str(tmp_path / "stand_in.py")))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def offline(runs: Path, run_id: str) -> Path:
    """Make an offline run as W&B leaves it; return its file."""
    folder = runs / f"wandb/offline-run-20260101_000000-{run_id}"
    folder.mkdir(parents=True)
    file = folder / f"run-{run_id}.wandb"
    file.write_bytes(b"a run")
    link = runs / "wandb/latest-run"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    return file


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["wandb_sync.py", *map(str, arguments)])
    return script.main()


def calls() -> list[str]:
    path = Path("calls")
    return path.read_text().splitlines() if path.exists() else []


def test_each_run_is_sent_once_and_again_once_it_has_gone_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = offline(runs, "first"), offline(runs / "mini", "second")
    assert typed(monkeypatch) == 0
    assert capsys.readouterr().out == "runs: 2 uploaded, 0 already uploaded, 0 failed\n"
    assert typed(monkeypatch) == 0
    assert capsys.readouterr().out == "runs: 0 uploaded, 2 already uploaded, 0 failed\n"
    os.utime(first.with_name(f"{first.name}.synced"), (0, 0))
    offline(runs, "third")
    online = runs / "wandb/run-20260101_000000-sent-by-itself"
    online.mkdir()
    (online / "run-sent-by-itself.wandb").touch()
    assert typed(monkeypatch, "runs/wandb") == 0
    assert calls() == ["run-second run-first", "run-first run-third"]
    assert capsys.readouterr().out == "runs/wandb: 2 uploaded, 0 already uploaded, 0 failed\n"


def test_what_fails_is_named_with_its_reason(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offline(runs, "bad"), offline(runs, "good")
    assert typed(monkeypatch, runs) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"{runs}: 1 uploaded, 0 already uploaded, 1 failed: ")
    assert err.endswith("permission denied\n")
    offline(runs, "worse")
    assert typed(monkeypatch, runs) == 1
    counts, *reasons = capsys.readouterr().err.splitlines()
    assert counts == f"{runs}: 0 uploaded, 1 already uploaded, 2 failed"
    assert reasons == [f"{run}: [phaseavg/{run}] permission denied" for run in ("bad", "worse")]


def test_a_run_in_training_is_left_for_later(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offline(runs, "first")
    with RunFolder(runs / "first"):
        assert typed(monkeypatch, runs) == 0
    assert "0 uploaded, 0 already uploaded, 1 in training and left" in capsys.readouterr().out
    assert calls() == []
    assert typed(monkeypatch, runs) == 0
    assert calls() == ["run-first"]


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = offline(runs, "first"), offline(runs, "slow")
    now, sleep = [0.0], time.sleep

    def passing(seconds: float) -> None:
        """Have the clock stand still until the first run is sent."""
        sleep(seconds)
        now[0] += upload.sent(first)

    monkeypatch.setattr(upload, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=passing))
    assert typed(monkeypatch, runs, "--patience", 3) == 1
    assert now == [4]  # of which the first is that in which it was sent
    assert capsys.readouterr().err.endswith(
        "1 uploaded, 0 already uploaded, 1 failed: no answer in 3 s\n"
    )


def test_without_runs_or_a_folder(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch) == 0
    runs.mkdir()
    assert typed(monkeypatch, runs) == 0
    assert capsys.readouterr().out == (
        f"runs: there is no offline run\n{runs}: there is no offline run\n"
    )
    assert typed(monkeypatch, "nowhere") == 2
    assert capsys.readouterr().err.startswith("wandb_sync.py: nowhere: there is no such folder")


def test_wandb_itself_without_a_login_is_told_in_one_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(runs.parent)  # where W&B leaves its logs
    monkeypatch.setenv("HOME", str(runs.parent / "home"))  # where there is no .netrc
    offline(runs, "first"), offline(runs, "second")
    assert typed(monkeypatch, runs) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"{runs}: 0 uploaded, 0 already uploaded, 2 failed: No API key")
    assert line.count("\n") == 1
