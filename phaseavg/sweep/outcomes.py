"""Read the outcomes of a sweep's runs from their folders."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phaseavg.runs.finished import differences, find_result
from phaseavg.runs.folder import in_progress, read_failure, read_result
from phaseavg.runs.record import METRICS, RESULT
from phaseavg.sweep.cells import Run
from phaseavg.training.parts import missing_data

Outcome = Mapping[str, Any]

FAILURE = "failure.json"


def classify_runs(runs: Mapping[str, Run]) -> tuple[dict[str, Outcome], list[Run], list[Run]]:
    """Return the results of finished runs, the runs that another process trains, and the rest.

    In the rest, runs whose last attempt failed come last, because they may crash again.
    """
    finished, held, missing = {}, [], []
    notes: Counter[str] = Counter()
    for run_id, run in runs.items():
        busy = in_progress(run.settings.run_folder)  # asked first: a run ends with its result
        found = None if run.settings.rerun else find_result(run.settings)
        if found:
            folder, finished[run_id] = found
            notes[", ".join(differences(folder, finished[run_id], run.settings))] += 1
        elif busy:
            held.append(run)
            print(f"{run_id}: another process is training this run", flush=True)
        else:
            missing.append(run)
    for note, count in notes.items():
        if note:
            print(f"{count} finished before, {note}; add rerun=true to repeat", flush=True)
    missing.sort(key=lambda run: read_failure(run.settings.run_folder) is not None)
    return finished, held, missing


def runs_without_data(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs whose data set is missing, by error message; check each data set once."""
    reasons: dict[str, str | None] = {}
    missing: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        data = json.dumps([run.settings.dataset, str(run.settings.data_dir)], sort_keys=True)
        if data not in reasons:
            reasons[data] = missing_data(run.settings)
        if reason := reasons[data]:
            missing[reason].append(run)
    return missing


class NewFiles:
    """The files that runs have written since this object was created, and their results.

    Args:
        runs: runs of a sweep that had no result, or have `rerun=true`.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._initial = {
            run.settings.run_folder / name: _modification_time(run.settings.run_folder / name)
            for run in runs
            for name in (RESULT, FAILURE, METRICS)
            if name != RESULT or run.settings.rerun  # else another sweep may have just finished it
        }

    def has(self, run: Run, name: str) -> bool:
        """Return whether a run has written the file `RESULT`, `FAILURE` or `METRICS`."""
        path = run.settings.run_folder / name
        return _modification_time(path) not in (None, self._initial.get(path))

    def result(self, run: Run) -> Outcome | None:
        """Return a run's new result; None if the run has not written a result."""
        return read_result(run.settings.run_folder) if self.has(run, RESULT) else None


def _modification_time(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def count_outcomes(
    total: int,
    ended: Sequence[Outcome],
    before: Sequence[Outcome],
    failed: int = 0,
    interrupted: int = 0,
) -> str:
    """Return the number of runs per outcome, as text.

    Args:
        total: the number of unique runs.
        ended: results of this sweep.
        before: earlier results, and results of other processes.
        failed: the number of failed runs.
        interrupted: the number of interrupted runs that saved their state.
    """
    statuses = Counter(result["status"] for result in ended)
    parts = {
        "finished": statuses["finished"],
        "finished before": len(before),
        "of these diverged": sum(result["status"] == "diverged" for result in before),
        "diverged": statuses["diverged"],
        "failed": failed,
        "interrupted": interrupted,
        "not run, or training in another process": (
            total - len(ended) - len(before) - failed - interrupted
        ),
    }
    return ", ".join(
        f"{n} {what}" for what, n in parts.items() if n or what in ("finished", "finished before")
    )
