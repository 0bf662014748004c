"""A bar at a terminal, plain lines elsewhere."""

import io
import re

import pytest
import torch
from rich.console import Console

from phaseavg.averaging import NoAveraging
from phaseavg.phases import Schedule
from phaseavg.training.progress import TrainingProgress
from phaseavg.training.state import TrainingState

LINE = {
    "epoch": 1,
    "phase": 1,
    "step": 8,
    "learning_rate": 0.1,
    "train": {"error": 50.0},
    "weights": {"error": 40.123},
    "images_per_second": 1234.5,
}


def progress_of_5_epochs(console: Console) -> TrainingProgress:
    schedule = Schedule([2, 2, 1], [1, 0.1, 0.01])
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = TrainingState(model, optimizer, NoAveraging(model, schedule.epochs), 8, 1000)
    return TrainingProgress(schedule, state, console)


def test_a_log_gets_one_plain_line_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr("phaseavg.training.progress.time.monotonic", lambda: 0.0)
    with progress_of_5_epochs(Console(file=log, soft_wrap=True)) as progress:
        for step in range(1, 9):
            progress.step(step, lambda: pytest.fail("not shown, so not to be read off the device"))
        progress.epoch(LINE)
        progress.epoch({**LINE, "epoch": 2, "step": 16, "bn": {"error": 39.0}})
    first, second = log.getvalue().splitlines()
    for shown in ("1/5", "1/3", "lr 0.1", "train 50.00", "test 40.12", "1234 images/s", "0:00:00"):
        assert shown in first
    assert "test after BN pass 39.00" in second
    assert "\x1b" not in log.getvalue()


def test_a_log_shows_observers_and_warns_of_singular_equations() -> None:
    log = io.StringIO()
    observers = {
        "swa": {"error": 38.0, "without_bn": {"error": 80.0}, "seconds": {}},
        "rna": {"solved_by": "least squares", "seconds": {}},  # not tested in this epoch
    }
    line = {**LINE, "bn": {"error": 39.0}, "average": {"error": 37.0, "solved_by": "solve"}}
    with progress_of_5_epochs(Console(file=log, soft_wrap=True)) as progress:
        progress.epoch({**line, "observers": observers})
    warning, errors = log.getvalue().splitlines()
    assert warning.startswith("rna: ")
    assert "singular at the end of epoch 1" in warning
    assert "test after BN pass 39.00  average 37.00  swa 38.00  1234 images/s" in errors


def test_the_time_left_follows_from_the_pace_since_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run resumes at a phase end, tests there for 1,000 s, and then takes 2 s a step."""
    clock, log = [0.0], io.StringIO()
    monkeypatch.setattr("phaseavg.training.progress.time.monotonic", lambda: clock[0])
    with progress_of_5_epochs(Console(file=log, soft_wrap=True)) as progress:
        clock[0] = 1000.0
        progress.epoch({**LINE, "epoch": 2, "step": 16, "bn": {"error": 39.0}})
        for step in range(17, 25):
            clock[0] += 2
            progress.step(step, lambda: 50.0)
        progress.epoch({**LINE, "epoch": 3, "step": 24})
    at_the_phase_end, after = log.getvalue().splitlines()
    assert at_the_phase_end.endswith("1234 images/s")
    assert after.endswith("eta 0:00:32")  # 16 steps


def test_a_terminal_shows_rate_eta_and_the_current_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phaseavg.training.progress.REFRESH_SECONDS", 0)
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=200)
    with progress_of_5_epochs(console) as progress:
        progress.epoch(LINE)
        progress.step(9, lambda: 44.4)
        progress.step(10, lambda: 33.3)
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", terminal.getvalue())  # without colours
    assert "epoch 2/5" in shown
    assert "10/40" in shown
    assert "steps/s" in shown
    assert re.search(r"eta \d:\d\d:\d\d", shown)
    assert "phase 1/3" in shown
    assert "now 33.3" in shown
    assert "test 40.12" in shown
