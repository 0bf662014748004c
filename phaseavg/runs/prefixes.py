"""Shared prefixes: initial epochs that several runs have in common and that are trained once.

A prefix of n epochs is the state of a run after the last update of epoch n, before evaluation and
averaging. A run can use a prefix until an average first replaces its weights. A prefix is the last
checkpoint of a run without averaging, whose observers are the averages that the other runs need.
The folder of this run is in `<share.dir>/<key>-<epochs>`. If it is deleted, its epochs are trained
again.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phaseavg.averaging import Averager
from phaseavg.averaging.snapshots import is_intact
from phaseavg.config import NO_TRACKING, Settings
from phaseavg.errors import UserError
from phaseavg.identity import NUMERICS_VERSION
from phaseavg.phases import Schedule
from phaseavg.runs.files import set_aside
from phaseavg.runs.folder import read_state
from phaseavg.runs.provenance import own_code, provenance
from phaseavg.targets import Part, build

NOTHING = "phaseavg.averaging.NoAveraging"
"""Target of `averaging=none`."""

OWN = "average"
"""Name of the average that may replace the weights."""

SAME_NUMBERS = ("device", "workers")
"""Execution options that do not change results, apart from the device type."""

FORMAT = 3
"""The format of prefixes; those of another format are not found."""


def digest(values: Any) -> str:
    """Return a hash of JSON-like values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def windows_of(average: Part) -> list[range] | None:
    """Return the epochs in each window of an average; None if unknown before training.

    Args:
        average: the part of an averager, with its `epochs`.
    """
    windows = _averager(json.dumps(average)).windows
    return None if windows is None else list(windows)


def identity_of(average: Part, epochs: int) -> str | None:
    """Return a name for an average and its windows that begin before epoch `epochs`: `g<hash>`.

    Two averages of a prefix with equal identities are bitwise equal. Returns None if no window has
    begun.
    """
    begun = [[w.start, len(w)] for w in windows_of(average) or () if w.start < epochs]
    averaging = {name: value for name, value in average.items() if name != "epochs"}
    values = {"averaging": averaging, "windows": begun, **own_code(averaging)}
    return f"g{digest(values)}" if begun else None


@cache
def _averager(part: str) -> Averager:
    """Build an averager of a one-parameter network from a part in JSON; cached for sweeps."""
    network, values = nn.Module(), json.loads(part)
    network.weight = nn.Parameter(torch.zeros(1))
    offered = {"device": "cpu", "folder": Path()}
    try:
        return build("averaging", values, Averager, offered=offered, model=network)
    except Exception:  # raised by a user-defined constructor
        return Averager(network, values["epochs"])


@cache
def _schedule(config: str) -> Schedule:
    """Build a schedule from a config in JSON; cached, as many runs of a sweep share schedules."""
    return build("schedule", json.loads(config), Schedule)


class Prefixes:
    """The prefixes of one run.

    Attributes:
        schedule: the schedule of the run.
        averages: the averages of the run, by name; parts with `epochs`.
        limit: epochs before an average first replaces the weights; 0 if the run cannot share,
            because its windows, or the rates of its own kind of schedule, are unknown.

    Raises:
        UserError: if the schedule rejects a value.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.schedule = _schedule(json.dumps(settings.schedule))
        parts = {**settings.observers, OWN: settings.averaging}
        epochs = self.schedule.epochs
        self.averages = {name: {**part, "epochs": epochs} for name, part in parts.items()}
        windows = {name: windows_of(average) for name, average in self.averages.items()}
        ends = [window.stop for window in windows[OWN] or ()]
        known = None not in windows.values() and type(self.schedule) is Schedule
        self.limit = min(ends, default=sum(epochs)) if known else 0
        self._keys: dict[int, str] = {}

    @property
    def averages_nothing(self) -> bool:
        """Whether no average replaces the weights."""
        return windows_of(self.averages[OWN]) == []

    @cached_property
    def origin(self) -> dict[str, Any]:
        """The settings that affect a run from its first step, and the evaluation settings."""
        names = ("dataset", "model", "optimizer", "batch_size", "seed", "batchnorm_batches")
        record = self.settings.record()
        return {
            "numerics_version": NUMERICS_VERSION,
            "format": FORMAT,
            **{name: record[name] for name in (*names, "evaluation")},
            **own_code([record[name] for name in (*names, "schedule")]),
        }

    def key(self, epochs: int) -> str:
        """Return a hash of all settings that affect the first `epochs` epochs, at most `limit`."""
        if epochs not in self._keys:
            phases = [phase for phase in self.schedule.phases if phase.first_epoch < epochs]
            rates = [self._rates(phase.index, epochs) for phase in phases]
            resets = [self.settings.optimizer_state for _ in phases[1:]]
            self._keys[epochs] = digest({**self.origin, "rates": rates, "optimizer_state": resets})
        return self._keys[epochs]

    def _rates(self, index: int, epochs: int) -> Any:
        """Return a phase's learning-rate factors in the first `epochs` epochs."""
        phase, shape = self.schedule.phases[index], self.schedule.shape
        done = range(min(phase.end, epochs) - phase.first_epoch)
        if getattr(shape, "per", "step") == "epoch":
            return [phase.factor * shape.factor(t, phase.epochs) for t in done]
        # A shape that changes every step is hashed by its config.
        return [self.settings.schedule["shape"], phase.epochs, phase.factor, len(done)]

    def needs(self, epochs: int) -> dict[str, str]:
        """Return the identities of the averages that begin before epoch `epochs`, by name.

        The averages of a run that trains a prefix are those of the runs that start from it.
        """
        averages = {**self.averages, **self.settings.share.guests}
        identities = {name: identity_of(one, epochs) for name, one in averages.items()}
        return {name: identity for name, identity in identities.items() if identity}


def prefix_settings(settings: Settings) -> Settings:
    """Return the settings of the run that trains the prefix `share.prefix` of a run.

    It has no averaging, observers or tracking, and ends with the prefix. Prefixes with other
    averages or another execution have other folders, as checkpoints contain them.

    Raises:
        UserError: if the run has no such prefix.
    """
    prefixes, end = Prefixes(settings), settings.share.prefix or 0
    phases = [phase for phase in prefixes.schedule.phases if phase.first_epoch < end]
    divisor = settings.schedule.get("divisor", 1)
    changes: dict[str, Any] = {
        "averaging": {"_target_": NOTHING},
        "observers": {},
        "tracking": NO_TRACKING,
        "save_weights": False,
        "schedule": {
            **settings.schedule,
            "epochs": [divisor * (min(phase.end, end) - phase.first_epoch) for phase in phases],
            "factors": [phase.factor for phase in phases],
        },
    }
    prefix = settings.model_copy(update=changes)
    # A shorter phase can change the learning rate.
    if end > prefixes.limit or Prefixes(prefix).key(end) != prefixes.key(end):
        raise UserError(f"share.prefix={end}: the run cannot share its first {end} epochs")
    execution = settings.execution.model_dump(exclude=set(SAME_NUMBERS))
    execution["device_type"] = settings.execution.device.partition(":")[0]
    variant = digest([settings.share.guests, execution])
    folder = settings.share.dir / f"{prefixes.key(end)}-{end}" / variant
    return prefix.model_copy(update={"runs_dir": folder, "records_dir": folder})


def execution_of(settings: Settings, device: torch.device) -> dict[str, Any]:
    """Return all execution options and versions that can change results.

    Args:
        settings: the settings of a run, without `auto` execution options.
        device: the training device.
    """
    details = provenance(device, settings.execution.model_dump())
    options = {k: v for k, v in details["execution"].items() if k not in SAME_NUMBERS}
    software = {name: details["versions"][name] for name in ("torch", "cuda")}
    return {**options, **software, "device_type": device.type}


@dataclass(frozen=True)
class Saved:
    """A saved prefix, without its state.

    Attributes:
        path: the last checkpoint of the run that trained it.
        key: from `Prefixes.key`.
        averages: the snapshots of each average in the folder of that run, by identity.
        execution: from `execution_of`.
    """

    path: Path
    key: str
    averages: Mapping[str, Sequence[str]]
    execution: Mapping[str, Any]

    def files(self, identities: Collection[str]) -> list[Path]:
        """Return the snapshots of some averages."""
        names = chain.from_iterable(self.averages[identity] for identity in identities)
        return [self.path.parent / name for name in names]


def saved_lengths(folder: Path) -> list[int]:
    """Return the lengths in epochs of the prefixes in `share.dir`, in descending order."""
    lengths = {path.name.rpartition("-")[2] for path in folder.glob("*-*")}
    return sorted((int(length) for length in lengths if length.isdecimal()), reverse=True)


def saved(folder: Path, key: str, epochs: int) -> Iterator[Saved]:
    """Yield the saved prefixes of a key; their states are not read.

    Args:
        folder: `share.dir`.
        key: from `Prefixes.key`.
        epochs: the length of the prefix.
    """
    for path in sorted(folder.glob(f"{key}-{epochs}/*/*/checkpoint-*.pt")):
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            head = content.get("prefix", {})
            found = Saved(path, **head) if head.get("key") == key else None
        except OSError:  # another process removed the file, or it cannot be read now
            continue
        except Exception:  # a damaged file can raise any exception
            _report_damaged(path)
            continue
        if found is not None:  # else an earlier checkpoint
            yield found


def load(prefix: Saved, identities: Collection[str]) -> dict[str, Any] | None:
    """Return the state of a saved prefix, on the CPU; None if it cannot be read.

    Damaged files are reported and renamed. Loading never executes code.

    Args:
        prefix: the prefix.
        identities: the averages that are needed, whose snapshots have to be intact.
    """
    try:
        state = read_state(prefix.path.read_bytes(), prefix.path)
        damaged = [file for file in prefix.files(identities) if not is_intact(file)]
    except OSError as error:
        print(f"{prefix.path}: cannot be read ({error.strerror})", flush=True)
        return None
    if state is None or damaged:
        _report_damaged(prefix.path, *damaged)
        return None
    return state


def _report_damaged(prefix: Path, *snapshots: Path) -> None:
    damaged = snapshots[0] if snapshots else prefix
    print(f"{damaged}: damaged; the epochs of this prefix will be trained again", flush=True)
    for file in (prefix, *snapshots):
        if file.exists():
            set_aside(file, "damaged")
