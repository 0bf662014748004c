"""Report the progress of a sweep from the files of its runs, under any launcher."""

import contextlib
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from phaseavg.runs.record import METRICS, RESULT
from phaseavg.sweep.epoch_times import checkpoint_epochs, epochs_trained, format_duration
from phaseavg.sweep.order import Job
from phaseavg.sweep.outcomes import FAILURE, NewFiles

EVERY_SECONDS = 60


def epochs_done(job: Job) -> int:
    """Return the epochs of a job's run that need not be trained: shared, or saved earlier."""
    saved = checkpoint_epochs(job.run.settings.run_folder)
    return max(job.start, job.saved_epochs(), saved)


class SweepProgress:
    """Print the number of ended runs and the remaining time every minute, while entered.

    Args:
        jobs: the jobs of the sweep.
        new: the new files of the runs.
    """

    def __init__(self, jobs: Sequence[Job], new: NewFiles) -> None:
        self._jobs, self._new = jobs, new
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._done = [epochs_done(job) for job in self._jobs]
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(timeout=5)  # the thread may be blocked by slow file access

    def describe(self) -> str | None:
        """Return the progress as text; None if no epoch has been trained."""
        left = trained = ended = failed = 0
        for job, done in zip(self._jobs, self._done, strict=True):
            run = job.run
            if self._new.has(run, RESULT) or job.is_stored():
                ended += not job.is_prefix
                trained += run.epochs - done
            elif self._new.has(run, FAILURE):
                failed += 1
            else:
                new = self._new.has(run, METRICS)
                epochs = max(done, epochs_trained(run.settings.run_folder)) if new else done
                left += run.epochs - epochs
                trained += epochs - done
        if trained <= 0:
            return None
        seconds = (time.monotonic() - self._began) / trained * left
        failures = f", {failed} failed" if failed else ""
        runs = sum(not job.is_prefix for job in self._jobs)
        return (
            f"sweep: {ended} of {runs} runs have ended{failures}; {left:,} epochs left, "
            f"about {format_duration(seconds)}"
        )

    def _print(self) -> None:
        printed = None
        while not self._over.wait(EVERY_SECONDS):
            with contextlib.suppress(OSError):  # a file may be deleted during reading
                text = self.describe()
                if text and text != printed:
                    print(text, flush=True)
                    printed = text
