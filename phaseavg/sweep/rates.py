"""How far runs are, and how long an epoch takes by the records of finished runs."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.runs.files import read_file
from phaseavg.runs.provenance import device_name, how
from phaseavg.runs.record import METRICS, intact_records, read_metrics
from phaseavg.training.execution import decided, pick_device

UNITS = {"h": 3600, "m": 60, "s": 1}


def seconds_of(budget: str | float) -> float:
    """Return the seconds of a budget such as 25m or 1h30m.

    Raises:
        UserError: if it is no time.
    """
    found = re.findall(r"(\d+(?:\.\d+)?)([hms])", str(budget))
    if not found or "".join(n + unit for n, unit in found) != str(budget):
        raise UserError(f"budget={budget}: must be a time such as 90s, 25m, 2h or 1h30m")
    return sum(float(number) * UNITS[unit] for number, unit in found)


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
    except (OSError, ValueError):
        return 0


def epochs_trained(folder: Path) -> int:
    """Return the epochs that a run has trained, saved or not."""
    try:
        return read_file(folder / METRICS).count(b"\n")
    except (OSError, ValueError):
        return 0


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
    """Return in words on which device a run is trained, and how."""
    device = pick_device(settings.execution.device)
    execution = decided(settings.execution, device).model_dump()
    return ", ".join([device_name(device), *how(execution)])


def measured_rates(folders: Sequence[Path], place: str) -> dict[str, Rate]:
    """Return the median seconds per epoch by workload, from the finished runs in folders.

    Args:
        folders: of runs or records.
        place: from `place_of`. A workload that was never measured there gets the rate of the place
            where it was measured most often, on the same device if possible.
    """
    device = place.partition(", ")[0]
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in intact_records(*folders):
        result = record.result
        names = {
            ", ".join([made["execution"]["device_name"], *how(made["execution"])])
            for made in result["provenance"]
        }
        if len(names) == 1 and result["epochs"]:  # two devices have no rate in common
            rate = result["seconds"]["total"] / result["epochs"]
            seconds[workload(record.config)][names.pop()].append(rate)
    rates = {}
    for work, places in seconds.items():
        order = {p: (p == place, p.partition(", ")[0] == device, len(places[p])) for p in places}
        name = max(places, key=lambda p: order[p])
        rates[work] = Rate(median(places[name]), len(places[name]), name)
    return rates


def rates_for(settings: Sequence[Settings]) -> dict[str, Rate]:
    """Return the measured rates of runs by workload, from their folders of runs and records."""
    folders = {folder for one in settings for folder in (one.runs_dir, one.records_dir)}
    return measured_rates(sorted(folders), place_of(settings[0])) if settings else {}
