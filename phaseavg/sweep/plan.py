"""Plan a sweep: count cells, runs and epochs, and estimate the remaining time."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from phaseavg.runs.finished import find_result
from phaseavg.runs.folder import read_failure
from phaseavg.sweep.cells import Request, Run
from phaseavg.sweep.epoch_times import (
    checkpoint_epochs,
    format_duration,
    load_epoch_times,
    workload,
)
from phaseavg.sweep.order import Job, arrange_jobs
from phaseavg.sweep.progress import epochs_done

HEADER = [
    *("", "cells", "runs", "unique", "finished"),
    *("epochs requested", "epochs of unique runs", "epochs with sharing", "epochs left"),
]


def shared_epochs(runs: Iterable[Run]) -> int:
    """Return the total epochs of runs, with prefixes shared."""
    return sum(job.epochs for job in arrange_jobs(list(runs)))


def plan(request: Request, runs: Mapping[str, Run], requested: int) -> str:
    """Return the plan of a sweep: a table of epochs, and the remaining hours.

    Args:
        request: tables, cells and seeds.
        runs: the unique runs, by run id.
        requested: the number of requested runs, including duplicates.
    """
    ended = {i for i, run in runs.items() if not run.settings.rerun and find_result(run.settings)}

    def epochs_left(members: Iterable[str]) -> list[tuple[Job, int]]:
        """Return the jobs of these runs, with the epochs left to train."""
        todo = [runs[run_id] for run_id in members if run_id not in ended]
        done = {run.run_id: checkpoint_epochs(run.settings.run_folder) for run in todo}
        return [(j, j.run.epochs - epochs_done(j)) for j in arrange_jobs(todo, done)]

    def row(name: str, cells: int | str, members: Counter[str]) -> list[int | str]:
        unique = [runs[run_id] for run_id in members]
        return [
            *(name, cells, members.total(), len(members), len(members.keys() & ended)),
            sum(runs[run_id].epochs * count for run_id, count in members.items()),
            *(sum(run.epochs for run in unique), shared_epochs(unique)),
            sum(epochs for _, epochs in epochs_left(members)),
        ]

    rows = []
    for name in request.tables:
        members = Counter(i for i, run in runs.items() for c in run.cells if c.table == name)
        rows.append(row(f"table {name}", sum(c.table == name for c in request.cells), members))
    counts = Counter({run_id: max(len(run.cells), 1) for run_id, run in runs.items()})
    rows.append(row("total", len(request.cells) or "", counts))
    rows[-1][2] = requested
    parts = [tabulate(rows, HEADER, tablefmt="github", intfmt=",")]
    failed = {run_id: read_failure(run.settings.run_folder) for run_id, run in runs.items()}
    failures = [f"{run_id}: {why}" for run_id, why in failed.items() if why and run_id not in ended]
    if failures:
        parts.append("\n".join(["failed in the last attempt:", *failures]))
    return "\n\n".join([*parts, time_left(epochs_left(runs))])


def time_left(jobs: Sequence[tuple[Job, int]]) -> str:
    """Estimate the hours of jobs from finished runs, by data set and network.

    Args:
        jobs: jobs, with the epochs left to train.
    """
    if not jobs:
        return "all runs are finished"
    times = load_epoch_times([job.run.settings for job, _ in jobs if not job.is_prefix])
    works: dict[tuple[str, str], list[tuple[Job, int]]] = {}
    for job, left in jobs:
        name = " ".join(job.run.run_id.split("-")[:2])
        works.setdefault((workload(job.run.settings.record()), name), []).append((job, left))
    rows, seconds, unmeasured = [], 0.0, 0
    for (work, name), members in works.items():
        epochs = sum(left for _, left in members)
        measured = ["not measured", "", ""]
        if time := times.get(work):
            seconds += epochs * time.seconds
            hours = epochs * time.seconds / 3600
            measured = [f"{time.seconds:.3g}", f"{time.runs} runs on {time.device}", f"{hours:.3g}"]
        else:
            unmeasured += epochs
        count = sum(not job.is_prefix for job, _ in members)
        rows.append([name, count, epochs, *measured])
    header = ["", "runs to train", "epochs left", "seconds per epoch", "measured in", "hours"]
    table = tabulate(rows, header, tablefmt="github", intfmt=",", disable_numparse=[3, 5])
    total = f"about {format_duration(seconds)} without parallel runs" if seconds else ""
    rest = f"{unmeasured:,} epochs without a measured time" if unmeasured else ""
    return f"{table}\n\n{' and '.join(filter(None, (total, rest)))}"
