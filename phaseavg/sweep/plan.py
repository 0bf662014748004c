"""What a sweep asks for, what of it is there, and what the rest will take."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml
from tabulate import tabulate

from phaseavg.config import Settings, build
from phaseavg.phases import Schedule
from phaseavg.runs.folder import read_failure
from phaseavg.runs.provenance import device_name
from phaseavg.sweep.cells import Request, Run
from phaseavg.training.execution import pick_device

HOUR = 3600


def epochs_of(settings: Settings) -> int:
    """Return the epochs of a run."""
    schedule: Schedule = build("schedule", settings.schedule, Schedule)
    return schedule.total_epochs


def epochs_done(folder: Path) -> int:
    """Return the epochs that a run need not train again when it goes on."""
    steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*.pt")]
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return sum(line["step"] <= max(steps, default=0) for line in lines)
    except (OSError, ValueError, LookupError):
        return 0


class Rate(NamedTuple):
    """How long an epoch takes, with all that is tested and averaged, as records have it."""

    seconds: float
    runs: int
    device: str


def workload(config: Mapping[str, Any]) -> str:
    """Return what the time of an epoch mostly depends on: data set, network and batch."""
    parts = {key: config[key] for key in ("dataset", "model", "batch_size")}
    return json.dumps(parts, sort_keys=True)


def measured_rates(folders: Sequence[Path], device: str) -> dict[str, Rate]:
    """Return the median seconds per epoch by workload, from the finished runs below `folders`.

    Args:
        folders: of runs or records.
        device: name of the one to train on. A workload that has never been measured on it gets the
            rate of the device on which it has been most often.
    """
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        for path in folder.glob("*/result.json"):
            try:
                result = json.loads(path.read_text())
                config = yaml.safe_load((path.parent / "config.yaml").read_text())
                (name,) = {p["execution"]["device_name"] for p in result["provenance"]}
                rate = result["seconds"] / result["epochs"]
                seconds[workload(config)][name].append(rate)
            except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError, yaml.YAMLError):
                continue  # of two devices, or damaged: it is no rate
    rates = {}
    for work, devices in seconds.items():
        name = device if device in devices else max(devices, key=lambda d: len(devices[d]))
        rates[work] = Rate(median(devices[name]), len(devices[name]), name)
    return rates


def plan(
    request: Request,
    runs: Mapping[str, Run],
    asked: int,
    result_of: Callable[[Run], Mapping[str, Any] | None],
) -> str:
    """Return the plan of a sweep in words and two tables.

    Args:
        request: what it asks for.
        runs: the different ones among its runs, by run id.
        asked: how many it asks for, equal ones counted each.
        result_of: finds the outcome of a run that has one.
    """
    ended = {i for i, run in runs.items() if not run.settings.force and result_of(run)}
    epochs = {run_id: epochs_of(run.settings) for run_id, run in runs.items()}
    left = {
        run_id: 0 if run_id in ended else epochs[run_id] - epochs_done(run.settings.run_folder)
        for run_id, run in runs.items()
    }

    def row(name: str, members: Mapping[str, int], cells: int | str) -> list[Any]:
        """Return a line of the first table; `members` has how often each run is asked for."""
        return [
            name,
            cells,
            sum(members.values()),
            len(members),
            len(members.keys() & ended),
            sum(epochs[run_id] * count for run_id, count in members.items()),
            sum(left[run_id] for run_id in members),
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
    text = tabulate(rows, [*head, "epochs to train"], tablefmt="github", intfmt=",")

    failed = {run_id: read_failure(run.settings.run_folder) for run_id, run in runs.items()}
    failures = [f"{run_id}: {why}" for run_id, why in failed.items() if why and run_id not in ended]
    if failures:
        text += "\n\nfailed when last tried:\n" + "\n".join(failures)
    return f"{text}\n\n{time_left(runs, left)}"


def time_left(runs: Mapping[str, Run], left: Mapping[str, int]) -> str:
    """Return the hours that the epochs left will take, by data set and network.

    Args:
        runs: by run id.
        left: epochs to train of each.
    """
    todo = [run for run_id, run in runs.items() if left[run_id]]
    if not todo:
        return "nothing is left to train"
    settings = todo[0].settings
    device = device_name(pick_device(settings.execution.device))
    folders = {
        folder
        for run in runs.values()
        for folder in (run.settings.runs_dir, run.settings.records_dir)
    }
    rates = measured_rates(sorted(folders), device)
    works: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in todo:
        recipe = run.settings.recipe()
        works[workload(recipe), _called(run)].append(run)
    rows, hours, unknown, missing = [], 0.0, 0, 0
    for (work, name), members in works.items():
        epochs = sum(left[run.settings.run_id] for run in members)
        rate = rates.get(work)
        if rate is None:
            unknown, missing = unknown + epochs, missing + 1
            rows.append([name, len(members), epochs, "not measured", "", ""])
            continue
        took = epochs * rate.seconds / HOUR
        hours += took
        source = f"{rate.runs} {'run' if rate.runs == 1 else 'runs'} on {rate.device}"
        rows.append([name, len(members), epochs, f"{rate.seconds:.3g}", source, f"{took:.3g}"])
    head = ["", "runs to train", "epochs to train", "seconds per epoch", "measured by", "hours"]
    table = tabulate(rows, head, tablefmt="github", intfmt=",", disable_numparse=[3, 5])
    known = f"about {hours:.3g} hours, one run after the other" if len(rows) > missing else ""
    rest = f"{unknown:,} epochs whose rate has not been measured" if unknown else ""
    return f"{table}\n\n{' and '.join(filter(None, (known, rest)))}"


def _called(run: Run) -> str:
    """Return data set and network as the user calls them."""
    if run.cells:
        return f"{run.cells[0].dataset} {run.cells[0].model}"
    return " ".join(run.settings.run_id.split("-")[:2])
