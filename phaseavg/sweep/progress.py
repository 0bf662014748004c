"""How far a sweep is, by the files that its runs write: the same under any launcher."""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from phaseavg.errors import UserError
from phaseavg.runs.record import METRICS
from phaseavg.sweep.order import Job
from phaseavg.sweep.outcomes import changed_at, stamp_of
from phaseavg.sweep.rates import epochs_saved, epochs_trained, in_words

EVERY_SECONDS = 60
MOST_OF_THE_TIME = 0.01
"""The share of the time that may go into reading files."""


@dataclass(frozen=True)
class Standing:
    """Where a sweep is.

    Attributes:
        left: epochs left to train.
        trained: epochs trained since the sweep was entered.
        ended: runs that have finished or diverged.
        failed: runs that have failed.
    """

    left: int
    trained: int
    ended: int
    failed: int


class SweepProgress:
    """While entered, prints every minute how many runs have ended, and the time left.

    The time left follows from the epochs trained since it was entered, whoever trains them.

    Args:
        jobs: of the sweep.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._before = [stamp_of(job.run) for job in self._jobs]
        folders = [job.run.settings.run_folder for job in self._jobs]
        self._done = [
            max(j.start, epochs_saved(f)) for j, f in zip(self._jobs, folders, strict=True)
        ]
        self._metrics = [changed_at(folder / METRICS) for folder in folders]
        self._shown = -1
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(timeout=5)  # it may wait for a disk, and has nothing to lose

    def look(self) -> Standing:
        """Return where the sweep is."""
        left = trained = ended = failed = 0
        entered = zip(self._jobs, self._before, self._metrics, self._done, strict=True)
        for job, before, metrics, done in entered:
            now, total, folder = stamp_of(job.run), job.run.epochs, job.run.settings.run_folder
            if now["result.json"] != before["result.json"]:
                ended += 1
                trained += total - done
            elif now["failure.json"] != before["failure.json"]:
                failed += 1
            else:
                same = changed_at(folder / METRICS) == metrics  # of an earlier attempt
                epochs = done if same else max(done, epochs_trained(folder))
                left += total - epochs
                trained += epochs - done
        return Standing(left, trained, ended, failed)

    def described(self) -> str | None:
        """Return where the sweep is, in words; None if nothing was trained since the last time."""
        now = self.look()
        if now.left == self._shown or now.trained <= 0:
            return None
        self._shown = now.left
        seconds = (time.monotonic() - self._began) / now.trained * now.left
        failed = f", {now.failed} failed" if now.failed else ""
        left = (
            f"{now.left:,} epochs left, about {in_words(seconds)}" if now.left else "no epoch left"
        )
        return f"sweep: {now.ended} of {len(self._jobs)} runs have ended{failed}; {left}"

    def _print(self) -> None:
        pause: float = EVERY_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(OSError, UserError):  # a file may be removed while it is read
                if text := self.described():
                    print(text, flush=True)
            pause = max(EVERY_SECONDS, (time.monotonic() - began) / MOST_OF_THE_TIME)
