"""How far a sweep is, and when it will be over, by what its runs leave: so under any launcher."""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from phaseavg.errors import UserError
from phaseavg.runs.folder import read_result
from phaseavg.sweep.budget import Work, in_words
from phaseavg.sweep.cells import Run
from phaseavg.sweep.outcomes import changed_at, stamp_of
from phaseavg.sweep.rates import epochs_done, epochs_there, epochs_trained

EVERY_SECONDS = 60
MOST_OF_THE_TIME = 0.01
"""The share of the time that may go into looking."""


@dataclass(frozen=True)
class Standing:
    """Where a sweep is.

    Attributes:
        left: epochs that are left to train.
        trained: epochs that have been, of runs that did not fail or diverge.
        ended: runs that have finished or diverged.
        failed: runs that have failed.
    """

    left: int
    trained: int
    ended: int
    failed: int


class SweepProgress:
    """While entered, says every minute how many runs have ended and what is left.

    The time left is by the epochs that have been trained since it was entered, whoever trains them,
    and how many at a time.

    Args:
        runs: that are to be trained.
        shared: whether what they have in common is trained once.
        called: what the line begins with.
    """

    def __init__(self, runs: Sequence[Run], shared: bool, called: str = "sweep") -> None:
        self._runs = {run.settings.run_id: run for run in runs}
        self._shared = shared
        self._called = called
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._before = {run_id: stamp_of(run) for run_id, run in self._runs.items()}
        metrics = [run.settings.run_folder / "metrics.jsonl" for run in self._runs.values()]
        self._metrics = {path: changed_at(path) for path in metrics}
        self._everything = Work(self._runs, epochs_there(self._runs), self._shared)
        self._said = self._everything.epochs(self._runs)
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

    def _epochs(self, folder: Path) -> int:
        """Return the epochs that a run has trained; of its last attempt, those it goes on from."""
        path = folder / "metrics.jsonl"
        same = path in self._metrics and changed_at(path) == self._metrics[path]
        return epochs_done(folder) if same else epochs_trained(folder)

    def look(self) -> Standing:
        """Return where the sweep is."""
        now = {run_id: stamp_of(run) for run_id, run in self._runs.items()}
        ended, failed = (
            {i for i, stamp in now.items() if stamp[name] != self._before[i][name]}
            for name in ("result.json", "failure.json")
        )
        results = {i: read_result(self._runs[i].settings.run_folder) for i in ended}
        finished = {i for i, result in results.items() if result and result["status"] == "finished"}
        failed -= ended
        rest = {i: run for i, run in self._runs.items() if i not in ended | failed}
        left = Work(rest, epochs_there(rest, self._epochs), self._shared).epochs(rest)
        trained = self._everything.epochs([*finished, *rest]) - left
        return Standing(left, trained, len(ended), len(failed))

    def described(self) -> str | None:
        """Return where the sweep is, in words; None if nothing was trained since the last time."""
        now = self.look()
        if now.left == self._said or now.trained <= 0:
            return None
        self._said = now.left
        seconds = (time.monotonic() - self._began) / now.trained * now.left
        trouble = f", {now.failed} failed" if now.failed else ""
        left = (
            f"{now.left:,} epochs left, about {in_words(seconds)}" if now.left else "tests are left"
        )
        return f"{self._called}: {now.ended} of {len(self._runs)} runs have ended{trouble}; {left}"

    def _watch(self) -> None:
        pause = EVERY_SECONDS
        while not self._over.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(OSError, UserError):  # of a file that goes as it is read
                if text := self.described():
                    print(text, flush=True)
            pause = max(EVERY_SECONDS, (time.monotonic() - began) / MOST_OF_THE_TIME)
