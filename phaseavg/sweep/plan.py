"""Plan a sweep: its cells, runs and epochs, what is finished, and the time that the rest takes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from phaseavg.runs.folder import read_failure
from phaseavg.sweep.cells import Request, Run
from phaseavg.sweep.order import Job, arranged, is_stored
from phaseavg.sweep.outcomes import result_of
from phaseavg.sweep.rates import epochs_saved, in_words, rates_for, workload
from phaseavg.training.sharing import uses_prefixes

HEAD = [
    *("", "cells", "runs", "different", "finished"),
    *("epochs asked for", "epochs equal runs merged", "epochs shared", "epochs left"),
]


def epochs_of(runs: Iterable[Run]) -> int:
    """Return the epochs that runs take together, with shared prefixes."""
    return sum(job.epochs for job in arranged(list(runs)))


def plan(request: Request, runs: Mapping[str, Run], asked: int) -> str:
    """Return the plan of a sweep: a table of epochs, and the hours that are left.

    Args:
        request: tables, cells and seeds.
        runs: its different runs, by run id.
        asked: number of its runs, equal ones counted each time.
    """
    ended = {i for i, run in runs.items() if not run.settings.rerun and result_of(run)}
    sharing = all(uses_prefixes(run.settings) for run in runs.values())

    def jobs_of(members: Iterable[str]) -> list[Job]:
        todo = [runs[run_id] for run_id in members if run_id not in ended]
        done = {r.run_id: epochs_saved(r.settings.run_folder) for r in todo}
        if sharing:
            return arranged(todo, done, is_stored)
        return [Job(run, start=done[run.run_id]) for run in todo]

    def row(name: str, cells: int | str, members: Counter[str]) -> list[int | str]:
        own = [runs[run_id] for run_id in members]
        merged = sum(run.epochs for run in own)
        return [
            *(name, cells, members.total(), len(members), len(members.keys() & ended)),
            sum(runs[run_id].epochs * count for run_id, count in members.items()),
            *(merged, epochs_of(own) if sharing else merged),
            sum(job.epochs for job in jobs_of(members)),
        ]

    rows = []
    for name in request.tables:
        members = Counter(i for i, run in runs.items() for c in run.cells if c.table == name)
        rows.append(row(f"table {name}", sum(c.table == name for c in request.cells), members))
    every = Counter({run_id: max(len(run.cells), 1) for run_id, run in runs.items()})
    rows.append(row("in all", len(request.cells) or "", every))
    rows[-1][2] = asked
    parts = [tabulate(rows, HEAD, tablefmt="github", intfmt=",")]
    failed = {run_id: read_failure(run.settings.run_folder) for run_id, run in runs.items()}
    failures = [f"{run_id}: {why}" for run_id, why in failed.items() if why and run_id not in ended]
    if failures:
        parts.append("\n".join(["failed when last tried:", *failures]))
    return "\n\n".join([*parts, time_left(jobs_of(runs))])


def time_left(jobs: Sequence[Job]) -> str:
    """Return the hours that jobs take at the rate of finished runs, by data set and network."""
    if not jobs:
        return "nothing is left to train"
    rates = rates_for([job.run.settings for job in jobs])
    works: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        name = " ".join(job.run.run_id.split("-")[:2])
        works.setdefault((workload(job.run.settings.record()), name), []).append(job)
    rows, seconds = [], 0.0
    for (work, name), members in works.items():
        epochs = sum(job.epochs for job in members)
        measured = ["not measured", "", ""]
        if rate := rates.get(work):
            seconds += epochs * rate.seconds
            hours = epochs * rate.seconds / 3600
            measured = [f"{rate.seconds:.3g}", f"{rate.runs} runs on {rate.place}", f"{hours:.3g}"]
        rows.append([name, len(members), epochs, *measured])
    head = ["", "runs to train", "epochs left", "seconds per epoch", "measured by", "hours"]
    table = tabulate(rows, head, tablefmt="github", intfmt=",", disable_numparse=[3, 5])
    known = f"\n\nabout {in_words(seconds)}, one run after the other" if seconds else ""
    return table + known
