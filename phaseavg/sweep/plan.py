"""What a sweep asks for, what of it is there, and what the rest will take."""

import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from tabulate import tabulate

from phaseavg import cli
from phaseavg.config import Settings
from phaseavg.phases import Schedule
from phaseavg.runs.folder import read_failure
from phaseavg.sweep.budget import Work, affordable, in_words
from phaseavg.sweep.cells import Request, Run
from phaseavg.sweep.rates import Rates, epochs_there, measured_rates, place_of, workload
from phaseavg.targets import build
from phaseavg.training.sharing import shares

HOUR = 3600

COUNTS = ("asked for", "equal runs merged", "shared")
"""Epochs of runs: of each cell alone, of different runs, and of these as far as they part."""


def epochs_of(settings: Settings) -> int:
    """Return the epochs of a run."""
    schedule: Schedule = build("schedule", settings.schedule, Schedule)
    return schedule.total_epochs


def counted(runs: Mapping[str, Run]) -> dict[str, int]:
    """Return the epochs of runs, by how much of what they have in common is trained once.

    Args:
        runs: the different ones, by run id; each has the cells that ask for it.

    Returns:
        By `COUNTS`.
    """
    epochs = {run_id: epochs_of(run.settings) for run_id, run in runs.items()}
    asked = sum(epochs[run_id] * len(run.cells) for run_id, run in runs.items())
    shared = Work(runs, {}, shared=True).epochs(runs)
    return dict(zip(COUNTS, (asked, sum(epochs.values()), shared), strict=True))


def plan(
    request: Request,
    runs: Mapping[str, Run],
    asked: int,
    result_of: Callable[[Run], Mapping[str, Any] | None],
    budget: float | None = None,
) -> str:
    """Return the plan of a sweep in words and two tables.

    Args:
        request: what it asks for.
        runs: the different ones among its runs, by run id.
        asked: how many it asks for, equal ones counted each.
        result_of: finds the outcome of a run that has one.
        budget: seconds, if it has a budget.
    """
    ended = {i for i, run in runs.items() if not run.settings.force and result_of(run)}
    epochs = {run_id: epochs_of(run.settings) for run_id, run in runs.items()}
    sharing = all(shares(run.settings) for run in runs.values())
    everything_anew = Work(runs, {}, sharing)
    todo = {run_id: run for run_id, run in runs.items() if run_id not in ended}
    work = Work(todo, epochs_there(todo), sharing)

    def row(name: str, members: Mapping[str, int], cells: int | str) -> list[Any]:
        """Return a line of the first table; `members` has how often each run is asked for."""
        return [
            name,
            cells,
            sum(members.values()),
            len(members),
            len(members.keys() & ended),
            sum(epochs[run_id] * count for run_id, count in members.items()),
            sum(epochs[run_id] for run_id in members),
            everything_anew.epochs(members),
            work.epochs(members.keys() & todo.keys()),
        ]

    rows = []
    for name in request.tables:
        members = {
            run_id: count
            for run_id, run in runs.items()
            if (count := sum(cell.table == name for cell in run.cells))
        }
        rows.append(row(f"table {name}", members, sum(c.table == name for c in request.cells)))
    everything = {run_id: max(len(run.cells), 1) for run_id, run in runs.items()}
    rows.append(row("in all", everything, len(request.cells) or ""))
    rows[-1][2] = asked
    head = ["", "cells", "runs asked for", "different", "finished", "epochs asked for"]
    head += ["equal runs merged", "shared" if sharing else "not shared", "epochs to train"]
    text = tabulate(rows, head, tablefmt="github", intfmt=",")

    failed = {run_id: read_failure(run.settings.run_folder) for run_id, run in runs.items()}
    failures = [f"{run_id}: {why}" for run_id, why in failed.items() if why and run_id not in ended]
    if failures:
        text += "\n\nfailed when last tried:\n" + "\n".join(failures)
    text += f"\n\n{time_left(todo, work)}"
    if budget is not None:
        found = affordable(todo, work, Rates(list(todo.values())), budget)
        chosen = [run_id for run_ids, _ in found for run_id in run_ids]
        spent = sum(seconds for _, seconds in found)
        text += (
            f"\n\nof these, {len(chosen)} runs fit into {in_words(budget)}, and will take about "
            f"{in_words(spent)}:" + "".join(f"\n{run_id}" for run_id in chosen)
        )
    return text


def time_left(runs: Mapping[str, Run], work: Work) -> str:
    """Return the hours that the epochs left will take, by data set and network.

    Args:
        runs: that have not ended, by run id.
        work: what there is to train of them.
    """
    todo = list(runs.values())
    if not todo:
        return "nothing is left to train"
    settings = todo[0].settings
    folders = {
        folder
        for run in runs.values()
        for folder in (run.settings.runs_dir, run.settings.records_dir)
    }
    rates = measured_rates(sorted(folders), place_of(settings))
    works: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in todo:
        recipe = run.settings.recipe()
        works[workload(recipe), _called(run)].append(run)
    rows, hints, hours, unknown, missing = [], [], 0.0, 0, 0
    for (load, name), members in works.items():
        epochs = work.epochs(run.settings.run_id for run in members)
        rate = rates.get(load)
        if rate is None:
            unknown, missing = unknown + epochs, missing + 1
            rows.append([name, len(members), epochs, "not measured", "", ""])
            run = shlex.join([*config_dir(), *members[0].overrides, "dry_run=true"])
            hints.append(f"python train.py {run}")
            continue
        took = epochs * rate.seconds / HOUR
        hours += took
        source = f"{rate.runs} {'run' if rate.runs == 1 else 'runs'} on {rate.place}"
        rows.append([name, len(members), epochs, f"{rate.seconds:.3g}", source, f"{took:.3g}"])
    head = ["", "runs to train", "epochs to train", "seconds per epoch", "measured by", "hours"]
    table = tabulate(rows, head, tablefmt="github", intfmt=",", disable_numparse=[3, 5])
    known = f"about {hours:.3g} hours, one run after the other" if len(rows) > missing else ""
    rest = f"{unknown:,} epochs whose rate has not been measured" if unknown else ""
    text = f"{table}\n\n{' and '.join(filter(None, (known, rest)))}"
    if hints:
        hints.insert(0, "a few steps of a run tell about how long it takes:")
    return "\n".join([text, *hints])


def config_dir() -> list[str]:
    """Return --config-dir as it was typed; nothing if it was not."""
    typed = cli.typed[1:]
    if "--config-dir" in typed[:-1]:
        return ["--config-dir", typed[typed.index("--config-dir") + 1]]
    return [argument for argument in typed if argument.startswith("--config-dir=")]


def _called(run: Run) -> str:
    """Return data set and network as the user calls them."""
    if run.cells:
        return f"{run.cells[0].dataset} {run.cells[0].model}"
    return " ".join(run.settings.run_id.split("-")[:2])
