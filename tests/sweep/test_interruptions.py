"""Sweeps interrupted by a deadline or a signal resume with the same command."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Prompt


def test_a_sweep_saves_running_runs_at_its_deadline(
    prompt: Prompt, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current run stops, the other runs do not start, and no run fails."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3 * 3600 * (len(steps) >= 13))
    command = ("-m", *TINY, "seed=0,1", "checkpoint_seconds=1000")
    status, out, err = prompt(*command, "budget=2h")
    assert status == 0
    assert "out of time after step 13 (epoch" in err
    assert "not started: no time left" in err
    assert "0 finished, 0 finished before, 1 interrupted, 1 not run" in out.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*/failure.json"))
    assert len(list(tmp_path.glob("runs/*/checkpoint-*.pt"))) == 1
    status, out, err = prompt(*TINY, "deadline=1", "seed=0")
    assert status == 130
    assert "from step 13;" in out
    assert "out of time after step 14" in err
    status, _, err = prompt(*command, "budget=soon")
    expected = "train.py: budget=soon: must be a time such as 90s, 25m, 2h or 1h30m\n"
    assert (status, err) == (2, expected)


@pytest.mark.slow
def test_a_sweep_resumes_after_ctrl_c_and_sigterm(
    swept: Callable[..., int], tmp_path: Path
) -> None:
    command = ("-m", *TINY, "seed=0,1", "checkpoint_seconds=1000")
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        assert swept(tmp_path, command, "stepped", 13, number) == status
        said = (tmp_path / "said").read_text()
        assert "sweep: 0 finished, 0 finished before, 2 not run, or training" in said
    assert swept(tmp_path, command, "never", 0) == 0
    said = (tmp_path / "said").read_text()
    assert said.count(" from step 0;") == 2  # the first run's first start, and the second run's
    assert said.splitlines()[-1] == "sweep: 2 finished, 0 finished before"
