"""Progress: a bar in a terminal, plain lines in a log."""

import io
import re
from types import SimpleNamespace

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
    "seconds": {"train": 10.0, "evaluation": 2.0},
}


def progress_of_5_epochs(console: Console, step: int = 0) -> TrainingProgress:
    schedule = Schedule([2, 2, 1], [1, 0.1, 0.01])
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = TrainingState(model, optimizer, NoAveraging(model, schedule.epochs), 8, 1000)
    state.step = step
    return TrainingProgress(schedule, state, console)


def test_a_log_has_one_plain_line_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # which does not make it a terminal
    log = io.StringIO()
    observers = {
        "swa": {"error": 38.0, "without_bn": {"error": 80.0}, "seconds": {}},
        "rna": {"seconds": {}},  # not evaluated in this epoch
    }
    tests = {"bn": {"error": 39.0}, "average": {"error": 37.0}}
    with progress_of_5_epochs(Console(file=log, soft_wrap=True, highlight=False)) as progress:
        for step in range(1, 9):
            progress.step(step, lambda: pytest.fail("not shown, so not to be read off the device"))
        progress.epoch([LINE])
        progress.epoch([LINE, {**LINE, "epoch": 2, **tests, "observers": observers}])
    first, second = log.getvalue().splitlines()
    for shown in ("1/5", "1/3", "lr 0.1", "train 50.00", "test 40.12", "1234 images/s"):
        assert shown in first
    assert first.endswith("eta 0:00:48")  # 4 epochs of 12 seconds
    assert "test after BN pass 39.00  average 37.00  swa 38.00  1234 images/s" in second
    assert "\x1b" not in log.getvalue()


def test_the_eta_spreads_the_tests_of_a_phase_end_over_the_epochs() -> None:
    log = io.StringIO()
    training = {**LINE, "seconds": {"train": 10.0}}
    phase_end = {**LINE, "epoch": 2, "replaced": True, "seconds": {"train": 9.0, "observers": 60.0}}
    with progress_of_5_epochs(Console(file=log, soft_wrap=True, highlight=False)) as progress:
        progress.epoch([training, phase_end])
    assert log.getvalue().endswith("eta 0:01:57\n")  # 3 epochs of 9 + (0 + 60) / 2 seconds


def test_a_terminal_shows_eta_and_the_current_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phaseavg.training.progress.REFRESH_SECONDS", 0)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    console = Console(file=terminal, width=200)
    with progress_of_5_epochs(console) as progress:
        progress.epoch([LINE])
        progress.step(9, lambda: 44.4)
        progress.step(10, lambda: 33.3)
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", terminal.getvalue())  # without colours
    for part in ("epoch 2/5", "10/40", "eta", "phase 1/3", "now 33.3", "test 40.12"):
        assert part in shown


@pytest.mark.parametrize(("seconds", "said"), [(3000.0, True), (2000.0, False)])
def test_a_run_of_days_on_a_cpu_says_so_after_its_first_steps(
    monkeypatch: pytest.MonkeyPatch, seconds: float, said: bool
) -> None:
    log = io.StringIO()
    now = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("phaseavg.training.progress.time", now)
    with progress_of_5_epochs(Console(file=log, soft_wrap=True, highlight=False)) as progress:
        for step in range(1, 21):
            now.monotonic = lambda: step * seconds  # noqa: B023
            progress.step(step, lambda: 0.0)
    message = "about 1.2 days on this CPU, at 3e+03 s a step; a GPU or scale=tenth is faster"
    assert (message in log.getvalue()) == said  # 36 of 40 steps are left
    assert log.getvalue().count("\n") == said


def test_the_evaluations_of_an_epochs_end_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    now = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("phaseavg.training.progress.time", now)
    with progress_of_5_epochs(Console(file=log), 6) as progress:
        for step in range(7, 21):
            now.monotonic = lambda: 100_000.0 * ((step - 1) // 8)  # noqa: B023
            progress.step(step, lambda: 0.0)
    assert not log.getvalue()
