"""The epochs that runs have trained, and the time of an epoch by the records of finished runs."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.runs.provenance import device_name, how
from phaseavg.runs.record import METRICS, READ_ERRORS, intact_records, read_metrics
from phaseavg.training.execution import pick_device, resolve_auto

UNITS = {"h": 3600, "m": 60, "s": 1}


def seconds_of(budget: str | float) -> float:
    """Return the seconds of a budget such as 25m or 1h30m.

    Raises:
        UserError: if it is no time.
    """
    if not re.fullmatch(r"(\d+(\.\d+)?[hms])+", str(budget)):
        raise UserError(f"budget={budget}: must be a time such as 90s, 25m, 2h or 1h30m")
    parts = re.findall(r"([\d.]+)([hms])", str(budget))
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def in_words(seconds: float) -> str:
    """Return a time in its largest fitting unit."""
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def step_saved(folder: Path) -> int:
    """Return the step of a run's latest checkpoint; 0 if it has none."""
    steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*.pt")]
    return max(steps, default=0)


def epochs_saved(folder: Path) -> int:
    """Return the epochs of a run that its latest checkpoint has."""
    saved = step_saved(folder)
    try:
        return sum(line["step"] <= saved for line in read_metrics(folder))
    except READ_ERRORS:
        return 0


def epochs_trained(folder: Path) -> int:
    """Return the epochs that a run has trained, saved or not."""
    return (folder / METRICS).read_bytes().count(b"\n")


class Rate(NamedTuple):
    """Seconds of an epoch with its tests and averages, the number of runs, and where they ran."""

    seconds: float
    runs: int
    place: str


def workload(config: Mapping[str, Any]) -> str:
    """Return what the time of an epoch mostly depends on: data set, network and batch."""
    parts = {key: config[key] for key in ("dataset", "model", "batch_size")}
    return json.dumps(parts, sort_keys=True)


def place_of(settings: Settings) -> str:
    """Return the device and the execution of a run in words."""
    device = pick_device(settings.execution.device)
    execution = resolve_auto(settings.execution, device).model_dump()
    return ", ".join([device_name(device), *how(execution)])


def measured_rates(folders: Sequence[Path], place: str) -> dict[str, Rate]:
    """Return the median seconds per epoch by workload, from the finished runs in folders.

    Args:
        folders: of runs or records.
        place: from `place_of`. A workload that was never measured there gets the rate of the place
            where it was measured most often.
    """
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in intact_records(*folders):
        result, execution = record.result, record.result["provenance"][-1]["execution"]
        if result["epochs"]:
            name = ", ".join([execution["device_name"], *how(execution)])
            rate = result["seconds"]["total"] / result["epochs"]
            seconds[workload(record.config)][name].append(rate)
    rates = {}
    for work, places in seconds.items():
        name = place if place in places else max(places, key=lambda p: len(places[p]))
        rates[work] = Rate(median(places[name]), len(places[name]), name)
    return rates


def rates_for(settings: Sequence[Settings]) -> dict[str, Rate]:
    """Return the measured rates of runs by workload, from their folders of runs and records."""
    folders = {folder for one in settings for folder in (one.runs_dir, one.records_dir)}
    return measured_rates(sorted(folders), place_of(settings[0])) if settings else {}
