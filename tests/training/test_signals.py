"""A signal is a wish, the second one an order."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

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
