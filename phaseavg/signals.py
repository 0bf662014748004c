"""Stop a run on a signal: finish the current step, save the state and exit."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from phaseavg import processes
from phaseavg.errors import Interrupted, OutOfTime

STDERR = 2


def _module(handler: Any) -> str:
    return getattr(handler, "__module__", None) or ""


class StopSignals:
    """In this context, the first SIGINT or SIGTERM sets `received`; a second signal kills.

    In a Slurm job of submitit, Slurm's warning before the time limit also sets `received`.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # a requirement of signal.signal
            # submitit's handlers requeue a job that is about to time out.
            handlers = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2)}
            warnings = [n for n, h in handlers.items() if _module(h).startswith("submitit.")]
            for number in (signal.SIGINT, signal.SIGTERM, *warnings):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if processes.rank() == 0:
            with contextlib.suppress(OSError):  # the terminal may be gone
                # Unbuffered, since the signal may interrupt a print.
                os.write(STDERR, b"stopping after this step; signal again to stop now\n")

    def stop(self, position: str) -> NoReturn:
        """Stop a run whose state is saved, as the sender of the signal expects.

        After SIGTERM, Slurm ends the job, and requeues a preempted job but not a cancelled one. If
        the process exited first, Slurm would record a failure, so the process waits.

        Raises:
            Interrupted: after SIGINT, or after SIGTERM outside Slurm.
            OutOfTime: if a Slurm job reaches its time limit and submitit does not requeue it.
            SystemExit: if submitit has requeued the job.
        """
        number = signal.Signals(self.received or 0)
        if number in (signal.SIGUSR1, signal.SIGUSR2):
            with contextlib.suppress(Exception):  # submitit raises an error if it must not requeue
                self._previous[number](number, None)
            raise OutOfTime(f"out of time {position}")
        if number == signal.SIGTERM and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
            print(f"interrupted {position}; waiting for Slurm to end this job", flush=True)
            while True:
                time.sleep(1)
        raise Interrupted(number, f"interrupted {position}")

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
