"""What the runs of a sweep have come to."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phaseavg.runs.finished import lacking, made_otherwise
from phaseavg.runs.folder import in_progress, read_failure, read_result
from phaseavg.sweep.cells import Run
from phaseavg.training.parts import missing_data

Outcome = Mapping[str, Any]


def result_of(run: Run) -> Mapping[str, Any] | None:
    """Return the outcome of a run, wherever it is recorded; None if it has none."""
    results = (read_result(place) for place in run.settings.places)
    return next((result for result in results if result), None)


def sorted_out(runs: Mapping[str, Run]) -> tuple[dict[str, Outcome], list[Run], list[Run]]:
    """Return what has ended, by run id; the runs that another process trains; those to train.

    Of these, runs that failed when last tried come last.
    """
    finished, held, missing = {}, [], []
    otherwise: Counter[str] = Counter()
    for run_id, run in runs.items():
        result = None if run.settings.rerun else result_of(run)
        if result:
            finished[run_id] = result
            otherwise[made_otherwise(result, run.settings)] += 1
            if lacks := lacking(run.settings.run_folder, result, run.settings):
                missing_parts = ", ".join(lacks)
                print(f"{run_id}: finished before, {missing_parts}; rerun=true repeats it")
        elif in_progress(run.settings.run_folder):
            held.append(run)
            print(f"{run_id}: another process is training it", flush=True)
        else:
            missing.append(run)
    for other, count in otherwise.items():
        if other:
            print(f"{count} finished before, NOT as asked for: {other}", flush=True)
    # One that has ended its process would end others' again.
    missing.sort(key=lambda run: read_failure(run.settings.run_folder) is not None)
    return finished, held, missing


def without_data(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs whose data set is missing, by what is; each data set is looked at once."""
    by_data: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        data = {"dataset": run.settings.dataset, "data_dir": run.settings.data_dir}
        by_data[json.dumps(data, sort_keys=True, default=str)].append(run)
    found: dict[str, list[Run]] = defaultdict(list)
    for some in by_data.values():
        if reason := missing_data(some[0].settings):
            found[reason] += some
    return found


Stamp = dict[str, int | None]


def stamp_of(run: Run) -> Stamp:
    """Return when what a run ends with was written, in its file system's nanoseconds."""
    return {n: changed_at(run.settings.run_folder / n) for n in ("result.json", "failure.json")}


def changed_at(path: Path) -> int | None:
    """Return when a file was written, in its file system's nanoseconds; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def outcomes(runs: Sequence[Run], before: Sequence[Stamp]) -> list[Outcome | None]:
    """Return the outcomes that runs have come to since they were stamped; None where none.

    With `rerun=true` there may be one from before.
    """
    return [
        read_result(run.settings.run_folder)
        if stamp_of(run)["result.json"] != stamp["result.json"]
        else None
        for run, stamp in zip(runs, before, strict=True)
    ]


def counted(
    results: Sequence[Outcome | None],
    finished: Mapping[str, Outcome],
    held: Sequence[Run],
    failed: int = 0,
    interrupted: int = 0,
) -> str:
    """Return in words how many of a sweep's runs have ended how.

    Args:
        results: of the runs that it was to train.
        finished: results of runs that were finished before.
        held: runs that another process trains.
        failed: how many of those without result have failed.
        interrupted: how many of these have saved their state; the others were not run.
    """
    statuses = Counter("left" if result is None else result["status"] for result in results)
    parts = {
        "finished": statuses["finished"],
        "finished before": len(finished),
        "of these diverged": sum(result["status"] == "diverged" for result in finished.values()),
        "diverged": statuses["diverged"],
        "failed": failed,
        "interrupted": interrupted,
        "not run, or in training by another process": (
            statuses["left"] - failed - interrupted + len(held)
        ),
    }
    return ", ".join(
        f"{n} {what}" for what, n in parts.items() if n or what in ("finished", "finished before")
    )
