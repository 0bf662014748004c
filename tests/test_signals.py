"""The first signal stops a run after its step, the second at once."""

import os
import signal
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from phaseavg.errors import OutOfTime
from phaseavg.signals import StopSignals


@pytest.fixture
def python_handles_interrupts() -> Iterator[None]:
    """Install Python's SIGINT handler: background processes of a script ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_recorded_and_the_second_interrupts_at_once(
    capfd: pytest.CaptureFixture[str],
    python_handles_interrupts: None,
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert capfd.readouterr().err == "stopping after this step; signal again to stop now\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_closed_terminal_does_not_prevent_saving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with StopSignals() as signals:
        monkeypatch.setattr(os, "write", Mock(side_effect=OSError(5, "Input/output error")))
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


class Handler:
    """A signal handler with the module name of submitit's handlers."""

    __module__ = "submitit.core.job_environment"

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def __call__(self, number: int, _: Any) -> None:
        raise self.raised


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (SystemExit(-1), SystemExit),  # requeued
        (RuntimeError("Job not requeued because: timed-out too many times."), OutOfTime),
    ],
)
def test_submitit_handles_its_signal_after_the_state_is_saved(
    raised: BaseException, expected: type[BaseException]
) -> None:
    before = signal.signal(signal.SIGUSR2, Handler(raised))
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGUSR2)
            assert signals.received == signal.SIGUSR2
            with pytest.raises(expected):
                signals.stop("after step 3")
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_without_submitit_its_signal_is_not_handled() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with StopSignals():
        assert signal.getsignal(signal.SIGUSR2) is before


def test_in_a_slurm_job_a_saved_run_waits_to_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise Slurm marks the job as failed and does not requeue it."""

    class Killed(BaseException):
        pass

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr("time.sleep", Mock(side_effect=Killed))
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Killed):
            signals.stop("after step 3")
