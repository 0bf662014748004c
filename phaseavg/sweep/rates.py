"""What of a sweep is done already, and how long an epoch takes."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from phaseavg.config import Settings
from phaseavg.runs.provenance import device_name, how
from phaseavg.runs.record import (
    ended_runs,
    read_config,
    read_lines,
    read_metrics,
    read_result,
)
from phaseavg.runs.store import Branch
from phaseavg.sweep.cells import Run
from phaseavg.training.execution import decided, pick_device
from phaseavg.training.sharing import shares, store_of


def epochs_done(folder: Path) -> int:
    """Return the epochs that a run need not train again when it goes on."""
    steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*.pt")]
    try:
        return sum(line["step"] <= max(steps, default=0) for line in read_lines(folder))
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def epochs_trained(folder: Path) -> int:
    """Return the epochs that a run has trained, whether or not it has saved its state since."""
    try:
        return read_metrics(folder).count(b"\n")
    except (OSError, ValueError):
        return 0


def epochs_there(
    runs: Mapping[str, Run], of: Callable[[Path], int] = epochs_done
) -> dict[str, int]:
    """Return the epochs that each run need not train, for itself or another one has trained them.

    Whether a shared trajectory was trained with the same execution as the run will have is seen
    only there: here any counts.

    Args:
        runs: by run id.
        of: tells it of a run by its folder.
    """
    done = {run_id: of(run.settings.run_folder) for run_id, run in runs.items()}
    branches: dict[Path, list[Branch]] = {}
    training: dict[Path, list[tuple[int, str]]] = {}
    for run in runs.values():
        if shares(run.settings) and run.settings.share.dir not in branches:
            store = store_of(run.settings)
            branches[run.settings.share.dir] = store.branches()
            training[run.settings.share.dir] = [
                (epochs, keys[str(epochs)])
                for home, keys in store.in_training()
                if str(epochs := of(home)) in keys
            ]
    for run_id, run in runs.items():
        trajectory = run.trajectory if shares(run.settings) else None
        if trajectory is None:
            continue
        for branch in branches[run.settings.share.dir]:
            if (
                done[run_id] < branch.epoch <= trajectory.total_epochs
                and branch.key == trajectory.key(branch.epoch)
                and branch.holds(trajectory.needs(branch.epoch).values(), trajectory.looks)
            ):
                done[run_id] = branch.epoch
        for epochs, key in training[run.settings.share.dir]:
            if done[run_id] < epochs <= trajectory.total_epochs and trajectory.key(epochs) == key:
                done[run_id] = epochs
    return done


class Rate(NamedTuple):
    """How long an epoch takes, with all that is tested and averaged, as records have it."""

    seconds: float
    runs: int
    place: str


def workload(config: Mapping[str, Any]) -> str:
    """Return what the time of an epoch mostly depends on: data set, network and batch."""
    parts = {key: config[key] for key in ("dataset", "model", "batch_size")}
    return json.dumps(parts, sort_keys=True)


def place_of(settings: Settings) -> str:
    """Return on what a run is trained, and how, in words."""
    device = pick_device(settings.execution.device)
    execution = decided(settings.execution, device).model_dump()
    return ", ".join([device_name(device), *how(execution)])


def measured_rates(folders: Sequence[Path], place: str) -> dict[str, Rate]:
    """Return the median seconds per epoch by workload, from the finished runs below `folders`.

    Args:
        folders: of runs or records.
        place: where and how to train (`place_of`). A workload that has never been measured there
            gets the rate of the place where it has been most often, on the same device if it can.
    """
    device = place.partition(", ")[0]
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        for path in ended_runs(folder):
            try:
                result, config = read_result(path), read_config(path)
                (name,) = {
                    ", ".join([p["execution"]["device_name"], *how(p["execution"])])
                    for p in result["provenance"]
                }
                rate = result["seconds"] / result["epochs"]
                seconds[workload(config)][name].append(rate)
            except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError):
                continue  # of two devices, or damaged: it is no rate
    rates = {}
    for work, places in seconds.items():
        order = {p: (p == place, p.partition(", ")[0] == device, len(places[p])) for p in places}
        name = max(places, key=lambda p: order[p])
        rates[work] = Rate(median(places[name]), len(places[name]), name)
    return rates


class Rates:
    """Seconds per epoch of runs: by records of the same place, or else by a few of their steps.

    Args:
        runs: whose folders have records.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._known: dict[str, float] = {}
        if runs:
            places = {
                folder
                for run in runs
                for folder in (run.settings.runs_dir, run.settings.records_dir)
            }
            here = place_of(runs[0].settings)
            rates = measured_rates(sorted(places), here)
            known = {work: rate.seconds for work, rate in rates.items() if rate.place == here}
            self._known = known

    def __call__(self, run: Run) -> float:
        """Return the seconds of an epoch of a run, with its tests."""
        work = workload(run.settings.recipe())
        if work not in self._known:
            from phaseavg.training.preview import seconds_per_epoch  # which loads what trains

            print(f"{run.settings.run_id}: its rate is not known", end="; ", flush=True)
            self._known[work] = seconds_per_epoch(run.settings)
        return self._known[work]
