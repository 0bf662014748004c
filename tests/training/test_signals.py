"""A signal is a wish, the second one an order."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from phaseavg.errors import OutOfTime
from phaseavg.training.signals import StopSignals


@pytest.fixture
def python_handles_interrupts() -> Iterator[None]:
    """A process started in the background of a script ignores SIGINT from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_is_noted_and_the_second_interrupts_at_once(
    capfd: pytest.CaptureFixture[str],
    python_handles_interrupts: None,
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        assert signals.received is None
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert capfd.readouterr().err == "stopping after this step; once more to stop at once\n"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_saving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with StopSignals() as signals:
        monkeypatch.setattr(os, "write", gone)
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


class Handler:
    """As submitit's, which is told by its module."""

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
def test_submitit_has_its_say_once_a_run_whose_time_is_over_is_saved(
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


def test_without_submitit_that_signal_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    with StopSignals():
        assert signal.getsignal(signal.SIGUSR2) is before


def test_in_a_slurm_job_a_saved_run_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else Slurm calls it failed, and does not requeue it."""

    class Killed(BaseException):
        pass

    def end(_: float) -> None:
        raise Killed

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr("time.sleep", end)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Killed):
            signals.stop("after step 3")
