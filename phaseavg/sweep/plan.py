"""What a sweep asks for, what of it is finished, and what the rest takes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import torch
from tabulate import tabulate
from torch import nn
from torch.optim import Optimizer

from phaseavg.averaging import RNAAverage
from phaseavg.runs.folder import read_failure
from phaseavg.sweep.cells import Request, Run
from phaseavg.sweep.order import Job, arranged, is_stored
from phaseavg.sweep.outcomes import result_of
from phaseavg.sweep.rates import epochs_saved, in_words, rates_for, workload
from phaseavg.targets import build
from phaseavg.training.sharing import shares

COUNTS = ("asked for", "equal runs merged", "shared")
"""Epochs of runs: of each cell alone, of different runs, and with shared prefixes."""

HEAD = ["", "cells", "runs", "different", "finished"]
HEAD += [f"epochs {count}" for count in COUNTS] + ["epochs left"]


def epochs_of(runs: Iterable[Run]) -> int:
    """Return the epochs that runs take together, with shared prefixes."""
    return sum(job.epochs for job in arranged(list(runs)))


def counted(runs: Mapping[str, Run]) -> dict[str, int]:
    """Return the epochs of runs, by `COUNTS`.

    Args:
        runs: the different ones, by run id; each has the cells that ask for it.
    """
    asked = sum(run.epochs * len(run.cells) for run in runs.values())
    merged = sum(run.epochs for run in runs.values())
    return dict(zip(COUNTS, (asked, merged, epochs_of(runs.values())), strict=True))


def plan(request: Request, runs: Mapping[str, Run], asked: int) -> str:
    """Return the plan of a sweep: a table, the disk and the hours that it takes.

    Args:
        request: what it asks for.
        runs: the different ones among its runs, by run id.
        asked: how many runs it asks for, equal ones counted each time.
    """
    ended = {i for i, run in runs.items() if not run.settings.rerun and result_of(run)}
    sharing = all(shares(run.settings) for run in runs.values())

    def jobs_of(members: Iterable[str]) -> list[Job]:
        todo = [runs[run_id] for run_id in members if run_id not in ended]
        done = {r.run_id: epochs_saved(r.settings.run_folder) for r in todo}
        if sharing:
            return arranged(todo, done, is_stored)
        return [Job(run, start=done[run.run_id]) for run in todo]

    def row(name: str, members: Mapping[str, int], cells: int | str) -> list[int | str]:
        """Return a line of the table; `members` has how often each run is asked for."""
        own = [runs[run_id] for run_id in members]
        merged = sum(run.epochs for run in own)
        return [
            name,
            cells,
            sum(members.values()),
            len(members),
            len(members.keys() & ended),
            sum(runs[run_id].epochs * count for run_id, count in members.items()),
            merged,
            epochs_of(own) if sharing else merged,
            sum(job.epochs for job in jobs_of(members)),
        ]

    rows = []
    for name in request.tables:
        counts = {i: sum(cell.table == name for cell in run.cells) for i, run in runs.items()}
        members = {run_id: count for run_id, count in counts.items() if count}
        rows.append(row(f"table {name}", members, sum(c.table == name for c in request.cells)))
    everything = {run_id: max(len(run.cells), 1) for run_id, run in runs.items()}
    rows.append(row("in all", everything, len(request.cells) or ""))
    rows[-1][2] = asked
    parts = [tabulate(rows, HEAD, tablefmt="github", intfmt=",")]
    failed = {run_id: read_failure(run.settings.run_folder) for run_id, run in runs.items()}
    failures = [f"{run_id}: {why}" for run_id, why in failed.items() if why and run_id not in ended]
    if failures:
        parts.append("\n".join(["failed when last tried:", *failures]))
    jobs = jobs_of(runs)
    parts.append(time_left(jobs))
    if any(job.keep for job in jobs):
        size = sum(prefix_bytes(job) for job in jobs)
        parts.append(f"prefixes that runs share take about {size / 1e9:.3g} GB of disk")
    return "\n\n".join(parts)


def time_left(jobs: Sequence[Job]) -> str:
    """Return the hours that jobs take at the rate of finished runs, by data set and network."""
    if not jobs:
        return "nothing is left to train"
    rates = rates_for([job.run.settings for job in jobs])
    works: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        name = " ".join(job.run.run_id.split("-")[:2])
        works.setdefault((workload(job.run.settings.record()), name), []).append(job)
    rows, hours, unknown = [], 0.0, 0
    for (work, name), members in works.items():
        epochs = sum(job.epochs for job in members)
        if rate := rates.get(work):
            took = epochs * rate.seconds / 3600
            hours += took
            source = f"{rate.runs} {'run' if rate.runs == 1 else 'runs'} on {rate.place}"
            rows.append([name, len(members), epochs, f"{rate.seconds:.3g}", source, f"{took:.3g}"])
        else:
            unknown += epochs
            rows.append([name, len(members), epochs, "not measured", "", ""])
    head = ["", "runs to train", "epochs left", "seconds per epoch", "measured by", "hours"]
    table = tabulate(rows, head, tablefmt="github", intfmt=",", disable_numparse=[3, 5])
    known = f"about {in_words(3600 * hours)}, one run after the other" if hours else ""
    rest = f"{unknown:,} epochs whose rate no finished run has measured" if unknown else ""
    return f"{table}\n\n{' and '.join(filter(None, (known, rest)))}"


def prefix_bytes(job: Job) -> int:
    """Return about how many bytes the prefixes take that a job saves.

    Each has the weights, the optimizer's state and the averages. RNA averages have a file for every
    epoch instead, and share them.
    """
    settings = job.run.settings
    networks = 1 + moments(json.dumps(settings.optimizer)) + len(settings.observers)
    copies, files = [], []
    for guest, until in job.guests.values():
        (files if isinstance(guest.averager.average, RNAAverage) else copies).append(until)
    states = sum(networks + sum(until >= epochs for until in copies) for epochs in job.keep)
    vectors = states + max(files, default=job.start) - job.start
    image_size = settings.dataset.get("image_size", 32)
    return 4 * vectors * parameters_of(json.dumps(settings.model), image_size)


@cache
def moments(optimizer: str) -> int:
    """Return how many numbers an optimizer keeps of each parameter, from its config as JSON."""
    parameter = nn.Parameter(torch.ones(2, 3))
    built: Optimizer = build(
        "optimizer", json.loads(optimizer), Optimizer, offered={"params": [parameter]}
    )
    parameter.grad = torch.ones_like(parameter)
    built.step()
    states = (*built.state.values(), *getattr(built, "inner", built).state.values())
    kept = [value for state in states for value in state.values()]
    alike = {id(value) for value in kept if getattr(value, "shape", None) == parameter.shape}
    return len(alike)


@cache
def parameters_of(model: str, image_size: int) -> int:
    """Return the parameters of a network, from its config as JSON, for 100 classes."""
    offered = {"num_classes": 100, "in_channels": 3, "image_size": image_size}
    with torch.device("meta"):
        network = build("model", json.loads(model), nn.Module, offered=offered)
    return sum(parameter.numel() for parameter in network.parameters())
