"""Prefixes: the first epochs that several runs have in common, trained once.

A prefix of n epochs is the state of a run after the n-th epoch's last update, before that epoch is
tested or averaged. Runs share it until one of them first replaces its weights by an average. It is
saved in `share.dir` as `<key>-<epochs>-<execution>-<checksum>.pt`, with the averages that the runs
starting from it need; `share.dir/snapshots` has the files that RNA's averages refer to. Deleting
the folder costs epochs, nothing else.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phaseavg.averaging import Averager
from phaseavg.averaging.snapshots import is_intact
from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.identity import NUMERICS_VERSION
from phaseavg.phases import Schedule
from phaseavg.runs.files import checksum, link, set_aside, write_atomically
from phaseavg.runs.folder import read_state
from phaseavg.runs.provenance import provenance
from phaseavg.targets import Part, build

OWN = "average"
"""Name of the average that may replace the weights."""

SAME_NUMBERS = ("device", "workers", "flipped_copy")
"""Execution options that change no bit of a number; of the device, the type counts."""


def digest(values: Any) -> str:
    """Return a hash of JSON-like values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Average:
    """One average of a run.

    Attributes:
        part: target and arguments of its averager.
        epochs: T_p of each phase of the run.
    """

    part: Part
    epochs: list[int]

    @property
    def averager(self) -> Averager:
        """The averager, of a network of one parameter; one that needs a real network knows less."""
        return _averager(json.dumps(self.part), tuple(self.epochs))

    @property
    def windows(self) -> list[range] | None:
        """The epochs that each average is over; None if that is not known before training."""
        windows = self.averager.windows
        return None if windows is None else list(windows)

    def identity(self, epochs: int) -> str | None:
        """Return a hash of what the average is made of in the first `epochs` epochs.

        Averages of one prefix are equal bit by bit if their identities are. None: no window has
        begun.
        """
        begun = [[w.start, len(w)] for w in self.windows or () if w.start < epochs]
        return digest({"averaging": self.part, "windows": begun}) if begun else None


@cache
def _averager(part: str, epochs: tuple[int, ...]) -> Averager:
    """Return an averager of a part as JSON; many runs of a sweep have the same."""
    network = nn.Module()
    network.weight = nn.Parameter(torch.zeros(1))
    given: dict[str, Any] = {"model": network, "epochs": list(epochs)}
    offered = {"device": "cpu", "folder": Path()}
    try:
        return build("averaging", json.loads(part), Averager, offered=offered, **given)
    except Exception:  # of a user's own constructor
        return Averager(**given)


@cache
def _schedule(config: str) -> Schedule:
    """Return the schedule of a config as JSON; many runs of a sweep have the same."""
    return build("schedule", json.loads(config), Schedule)


class Prefixes:
    """The prefixes of one run.

    Attributes:
        schedule: its phases.
        averages: its averages, by name.
        limit: epochs before its weights are first replaced; 0 if it shares nothing.

    Raises:
        UserError: if its schedule refuses a value.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.schedule = _schedule(json.dumps(settings.schedule))
        parts = {**settings.observers, OWN: settings.averaging}
        self.averages = {n: Average(part, self.schedule.epochs) for n, part in parts.items()}
        windows = [average.windows for average in self.averages.values()]
        own = self.averages[OWN].windows
        total = self.schedule.total_epochs
        self.limit = 0 if None in windows else min([w.stop for w in own or ()], default=total)
        self._keys: dict[int, str] = {}

    @property
    def averages_nothing(self) -> bool:
        """Whether the weights are never replaced: other runs may start from this one."""
        return self.averages[OWN].windows == []

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What shapes a run from its first step on, and how often it is tested."""
        names = ("dataset", "model", "optimizer", "batch_size", "seed", "batchnorm_batches")
        record = self.settings.record()
        return {
            "numerics_version": NUMERICS_VERSION,
            **{name: record[name] for name in (*names, "evaluation")},
        }

    def key(self, epochs: int) -> str:
        """Return a hash of all that shapes the first `epochs` epochs, at most `limit`."""
        if epochs not in self._keys:
            phases = [phase for phase in self.schedule.phases if phase.first_epoch < epochs]
            rates = [self._rates(phase.index, epochs) for phase in phases]
            resets = [self.settings.optimizer_state for _ in phases[1:]]
            self._keys[epochs] = digest({**self.origin, "rates": rates, "optimizer_state": resets})
        return self._keys[epochs]

    def _rates(self, index: int, epochs: int) -> Any:
        """Return a phase's rates in the first `epochs` epochs, relative to the optimizer's."""
        phase, shape = self.schedule.phases[index], self.schedule.shape
        done = range(min(phase.end, epochs) - phase.first_epoch)
        if getattr(shape, "per", "step") == "epoch":
            return [phase.factor * shape.factor(t, phase.epochs) for t in done]
        # Within an epoch only the shape itself says how the rate runs.
        return [self.settings.schedule["shape"], phase.epochs, phase.factor, len(done)]

    def needs(self, epochs: int) -> dict[str, str]:
        """Return the identities of the averages that have begun after `epochs` epochs, by name."""
        identities = {name: average.identity(epochs) for name, average in self.averages.items()}
        return {name: identity for name, identity in identities.items() if identity}


def execution_key(settings: Settings, device: torch.device) -> str:
    """Return a hash of everything in the execution that changes the last bits of a number.

    Args:
        settings: of a run, with nothing of its execution left open.
        device: that it is trained on.
    """
    made = provenance(device, settings.execution.model_dump())
    execution = {k: v for k, v in made["execution"].items() if k not in SAME_NUMBERS}
    versions = {name: made["versions"][name] for name in ("torch", "cuda")}
    return digest({"device_type": device.type, **execution, **versions})[:8]


@dataclass(frozen=True)
class Saved:
    """The file of a saved prefix, and the names of its averages by their identity."""

    path: Path
    averages: Mapping[str, str]


def saved(folder: Path, key: str, epochs: int, execution: str = "*") -> Iterator[Saved]:
    """Yield the saved prefixes of a key, reading only their heads.

    Args:
        folder: `share.dir`.
        key: from `Prefixes.key`.
        epochs: of the prefix.
        execution: from `execution_key`; by default any.
    """
    for path in sorted(folder.glob(f"{key}-{epochs}-{execution}-*.pt")):
        try:
            head = torch.load(path, mmap=True, weights_only=True)["head"]
            yield Saved(path, dict(head["averages"]))
        except FileNotFoundError:  # removed meanwhile
            continue
        except Exception:  # a damaged file can make it raise anything
            _report_damaged(path, path)


def save(
    folder: Path,
    key: str,
    epochs: int,
    execution: str,
    state: Mapping[str, Any],
    averages: Mapping[str, str],
    files: Iterable[Path],
) -> None:
    """Save a prefix as `saved` yields it, and link the files that its averages refer to.

    Args:
        folder: `share.dir`.
        key: from `Prefixes.key`.
        epochs: of the prefix.
        execution: from `execution_key`.
        state: of the run.
        averages: the name of each average in the state, by its identity.
        files: snapshots that the state refers to.

    Raises:
        UserError: if it cannot be written.
    """
    place = f"share.dir={folder}"
    files = list(files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror})") from error
    for file in files:
        link(file, folder / "snapshots" / file.name, place)
    head = {"key": key, "averages": dict(averages), "files": [file.name for file in files]}
    buffer = io.BytesIO()
    torch.save({"head": head, "state": dict(state)}, buffer)
    content = buffer.getvalue()
    name = f"{key}-{epochs}-{execution}-{checksum(content)}.pt"
    write_atomically(folder / name, content, place)


def load(prefix: Saved) -> dict[str, Any] | None:
    """Return the state of a saved prefix, on the CPU; None if it is damaged, which is reported.

    A damaged file is set aside. Loading never executes code.
    """
    path = prefix.path
    try:
        content = read_state(path.read_bytes(), path)
    except OSError:
        content = None
    if content is None or content["head"]["key"] != path.name.partition("-")[0]:
        _report_damaged(path, path)
        return None
    for name in content["head"]["files"]:
        file = path.parent / "snapshots" / Path(name).name
        if not is_intact(file):
            _report_damaged(path, file)
            return None
    return content["state"]


def _report_damaged(path: Path, damaged: Path) -> None:
    print(f"{damaged}: damaged; the epochs of {path.name} will be trained again", flush=True)
    for file in {path, damaged}:
        if file.exists():
            set_aside(file, "damaged")
