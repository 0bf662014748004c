"""How far a sweep is, and when it will be over, by what its runs leave: so under any launcher."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from phaseavg.sweep.budget import Work, in_words
from phaseavg.sweep.cells import Run
from phaseavg.sweep.outcomes import stamp_of
from phaseavg.sweep.rates import epochs_there, epochs_trained

EVERY_SECONDS = 60
MOST_OF_THE_TIME = 0.01
"""The share of the time that may go into looking."""


class SweepProgress:
    """While entered, says every minute how many runs have ended and what is left.

    The time left is by the epochs that have been trained since it was entered, whoever trains them,
    and how many at a time.

    Args:
        runs: that are to be trained.
        shared: whether what they have in common is trained once.
    """

    def __init__(self, runs: Sequence[Run], shared: bool) -> None:
        self._runs = {run.settings.run_id: run for run in runs}
        self._before = {run_id: stamp_of(run) for run_id, run in self._runs.items()}
        self._shared = shared
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._left_at_first = self._said = self.left()[0]
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def left(self) -> tuple[int, int, int]:
        """Return the epochs that are left to train, and how many runs have ended and failed."""
        now = {run_id: stamp_of(run) for run_id, run in self._runs.items()}
        news = {
            name: {i for i, stamp in now.items() if stamp[name] != self._before[i][name]}
            for name in ("result.json", "failure.json")
        }
        ended = news["result.json"]
        failed = news["failure.json"] - ended
        rest = {i: run for i, run in self._runs.items() if i not in ended | failed}
        work = Work(rest, epochs_there(rest, epochs_trained), self._shared)
        return work.epochs(rest), len(ended), len(failed)

    def described(self) -> str | None:
        """Return where the sweep is, in words; None if nothing was trained since the last time."""
        left, ended, failed = self.left()
        trained = self._left_at_first - left
        if left == self._said or trained <= 0:
            return None
        self._said = left
        seconds = (time.monotonic() - self._began) / trained * left
        trouble = f", {failed} failed" if failed else ""
        return (
            f"sweep: {ended} of {len(self._runs)} runs have ended{trouble}; {left:,} epochs left, "
            f"about {in_words(seconds)}"
        )

    def _watch(self) -> None:
        pause = EVERY_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            if text := self.described():
                print(text, flush=True)
            pause = max(EVERY_SECONDS, (time.monotonic() - began) / MOST_OF_THE_TIME)
