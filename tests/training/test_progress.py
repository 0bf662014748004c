"""A bar at a terminal, plain lines elsewhere."""

import io
import re

import pytest
import torch
from rich.console import Console

from phaseavg.averaging import NoAveraging
from phaseavg.phases import Schedule
from phaseavg.training.progress import TrainingProgress, described
from phaseavg.training.state import TrainingState

LINE = {
    "epoch": 1,
    "phase": 1,
    "step": 8,
    "learning_rate": 0.1,
    "train_error": 50.0,
    "test_error": 40.123,
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
        progress.epoch({**LINE, "epoch": 2, "step": 16, "bn_test_error": 39.0})
    first, second = log.getvalue().splitlines()
    assert first.startswith("epoch 1/5  phase 1/3  lr 0.1  errors (%): train 50.00  test 40.12  ")
    assert "1234 images/s  eta 0:00:00" in first
    assert "test after BN pass 39.00" in second
    assert "\x1b" not in log.getvalue()


def test_a_log_says_how_what_is_watched_does_and_what_was_singular() -> None:
    log = io.StringIO()
    line = {
        **LINE,
        "bn_test_error": 39.0,
        "swa_without_bn_test_error": 80.0,
        "swa_test_error": 38.0,
        "average_test_error": 37.0,
        "rna_solved_by": "least squares",
        "average_solved_by": "solve",
    }
    with progress_of_5_epochs(Console(file=log, soft_wrap=True)) as progress:
        progress.epoch(line)
    trouble, errors = log.getvalue().splitlines()
    assert trouble == (
        "rna: the equations of the learnt weights are singular at the end of epoch 1; "
        "the weights are their least-squares solution"
    )
    assert "test after BN pass 39.00  average 37.00  swa 38.00  1234 images/s" in errors


def test_the_time_left_is_by_the_steps_that_are_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on from a phase end, tests there for 1,000 s, and then takes 2 s a step."""
    clock, log = [0.0], io.StringIO()
    monkeypatch.setattr("phaseavg.training.progress.time.monotonic", lambda: clock[0])
    with progress_of_5_epochs(Console(file=log, soft_wrap=True)) as progress:
        clock[0] = 1000.0
        progress.epoch({**LINE, "epoch": 2, "step": 16, "bn_test_error": 39.0})
        for step in range(17, 25):
            clock[0] += 2
            progress.step(step, lambda: 50.0)
        progress.epoch({**LINE, "epoch": 3, "step": 24})
    at_the_phase_end, after = log.getvalue().splitlines()
    assert at_the_phase_end.endswith("1234 images/s")
    assert after.endswith("eta 0:00:32")  # 16 steps


def test_what_is_carried_for_others_is_not_shown() -> None:
    assert described({"test_error": 40.0, "carried_0123_test_error": 30.0}) == "test 40.00"


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
