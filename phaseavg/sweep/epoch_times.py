"""Progress of runs, and time per epoch estimated from the records of finished runs."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.runs.provenance import device_name, execution_words
from phaseavg.runs.record import METRICS, READ_ERRORS, intact_records, read_metrics
from phaseavg.training.execution import pick_device, resolve_auto

UNITS = {"h": 3600, "m": 60, "s": 1}


def parse_duration(budget: str | float) -> float:
    """Convert a budget such as 25m or 1h30m to seconds; a number without a unit is rejected.

    Raises:
        UserError: if the format is invalid.
    """
    if not re.fullmatch(r"(\d+(\.\d+)?[hms])+", str(budget)):
        raise UserError(f"budget={budget}: must be a time such as 90s, 25m, 2h or 1h30m")
    parts = re.findall(r"([\d.]+)([hms])", str(budget))
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes, hours or days."""
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def checkpoint_step(folder: Path) -> int:
    """Return the step of a run's latest checkpoint; 0 without a checkpoint."""
    steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*.pt")]
    return max(steps, default=0)


def checkpoint_epochs(folder: Path) -> int:
    """Return the number of epochs that a run had finished at its latest checkpoint."""
    saved = checkpoint_step(folder)
    try:
        return sum(line["step"] <= saved for line in read_metrics(folder))
    except READ_ERRORS:
        return 0


def epochs_trained(folder: Path) -> int:
    """Return the number of finished epochs, including those after the latest checkpoint."""
    return (folder / METRICS).read_bytes().count(b"\n")


class EpochTime(NamedTuple):
    """Median seconds per epoch, including evaluation and averaging, over a number of runs."""

    seconds: float
    runs: int
    device: str


def workload(config: Mapping[str, Any]) -> str:
    """Return a key for the time per epoch: data set, network and batch size, as JSON."""
    parts = {key: config[key] for key in ("dataset", "model", "batch_size")}
    return json.dumps(parts, sort_keys=True)


def describe_device(settings: Settings) -> str:
    """Return the device's name and the execution options of a run, in words.

    Returns an empty text if this machine cannot train the run, for example a login node.
    """
    try:
        device = pick_device(settings.execution.device)
        execution = resolve_auto(settings.execution, device).model_dump()
    except UserError:
        return ""
    return ", ".join([device_name(device), *execution_words(execution)])


def median_epoch_times(folders: Sequence[Path], device: str) -> dict[str, EpochTime]:
    """Return the median time per epoch by workload, from the ended runs in folders.

    Args:
        folders: folders of runs or records.
        device: from `describe_device`. If a workload has no runs on this device with these
            options, those with the most runs are used.
    """
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in intact_records(*folders):
        # A resumed run counts for the device on which it ended.
        result, execution = record.result, record.result["provenance"][-1]["execution"]
        if result["epochs"]:
            name = ", ".join([execution["device_name"], *execution_words(execution)])
            per_epoch = result["seconds"]["total"] / result["epochs"]
            seconds[workload(record.config)][name].append(per_epoch)
    times = {}
    for work, devices in seconds.items():
        name = device if device in devices else max(devices, key=lambda d: len(devices[d]))
        times[work] = EpochTime(median(devices[name]), len(devices[name]), name)
    return times


def load_epoch_times(settings: Sequence[Settings]) -> dict[str, EpochTime]:
    """Return the time per epoch by workload, from the folders of runs and records in `settings`."""
    # All runs of a sweep have the same device and options.
    folders = {folder for run in settings for folder in (run.runs_dir, run.records_dir)}
    return median_epoch_times(sorted(folders), describe_device(settings[0])) if settings else {}
