"""Signals that ask a run to stop: it finishes the current step, saves and stops."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from phaseavg.errors import Interrupted, OutOfTime

STDERR = 2


def _module(handler: Any) -> str:
    return getattr(handler, "__module__", None) or ""


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted in `received`; a second one kills.

    In a Slurm job of submitit, so is the signal that Slurm sends before the job's time is over.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only there can it be done
            # submitit's own handlers requeue a job that is about to time out.
            handlers = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2)}
            warnings = [n for n, h in handlers.items() if _module(h).startswith("submitit.")]
            for number in (signal.SIGINT, signal.SIGTERM, *warnings):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        with contextlib.suppress(OSError):  # the terminal may be gone
            # Unbuffered, for the signal may have come in the middle of a print.
            os.write(STDERR, b"stopping after this step; once more to stop at once\n")

    def stop(self, where: str) -> NoReturn:
        """Stop a run whose state is saved, as the sender of the signal expects.

        SIGTERM in a Slurm job: Slurm is about to end the job, and to requeue it if it was preempted
        but not if it was cancelled. Exiting first would make it a failed one, so wait for the end.

        Raises:
            Interrupted: after SIGINT, or SIGTERM outside of Slurm.
            OutOfTime: if the time of a Slurm job is over and submitit does not requeue it.
            SystemExit: if submitit has requeued the job.
        """
        number = signal.Signals(self.received or 0)
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            with contextlib.suppress(Exception):  # "not requeued", as its settings say
                self._previous[number](number, None)
            raise OutOfTime(f"out of time {where}")
        if number == signal.SIGTERM and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            print(f"interrupted {where}; waiting for Slurm to end this job", flush=True)
            while True:
                time.sleep(1)
        raise Interrupted(number, f"interrupted {where}")

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
