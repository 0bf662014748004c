"""Ctrl-C and the scheduler's SIGTERM as a wish that the loop fulfils at the end of a step."""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self

STDERR = 2


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted in `received`; a second one kills."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # only there can it be done
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        # Unbuffered, for the signal may have come in the middle of a print; and without fail, for
        # the terminal may be gone.
        with contextlib.suppress(OSError):
            os.write(STDERR, b"stopping after this step; once more to stop at once\n")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
