"""What shapes the first n epochs of a run: runs that have it in common share these epochs.

Of the recipe that is the data, the network, the optimizer, the seed, the learning rates of the n
epochs, and what happened at the ends of phases before them. Averages that only watch are no part of
it, nor is what comes after the n-th epoch: it is meant as of the moment after that epoch's last
update, before an average replaces the weights. A replacement counts from there on.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phaseavg.averaging import Averager
from phaseavg.config import Settings
from phaseavg.phases import Schedule
from phaseavg.runs.identity import NUMERICS_VERSION, parts_of
from phaseavg.runs.provenance import provenance
from phaseavg.targets import Part, build

OWN = "average"
"""What the average that may replace the weights is called in a record."""

SAME_NUMBERS = ("device", "workers", "flipped_copy")
"""Of the execution, what changes no bit of a number; of the device its type counts."""


def digest(values: Any) -> str:
    """Return a hash of JSON-like values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _stand_in() -> nn.Module:
    """Return a network of which nothing is asked; making it draws no random numbers."""
    network = nn.Module()
    network.weight = nn.Parameter(torch.zeros(1))
    return network


@dataclass
class Averaging:
    """One average of a run, as far as it is known before training.

    Attributes:
        part: target and arguments.
        epochs: T_p of each phase.
    """

    part: Part
    epochs: list[int]

    def __post_init__(self) -> None:
        offered = {"device": "cpu", "folder": Path()}
        try:
            self.averager: Averager = build(
                "averaging",
                self.part,
                Averager,
                offered=offered,
                model=_stand_in(),
                epochs=self.epochs,
            )
        except Exception:  # a user's own that needs its real network: nothing is known of it
            self.averager = Averager(_stand_in(), self.epochs)

    def identity(self, epochs: int) -> str | None:
        """Return a hash of what the average is made of in the first `epochs` epochs, if it is.

        Two of them are equal bit by bit on one trajectory if their identities are.
        """
        begun = [w for w in self.averager.windows or () if w.start < epochs]
        windows = [(window.start, len(window)) for window in begun]
        if not windows:
            return None
        return digest({"averaging": self.part, "windows": windows})


@dataclass
class Trajectory:
    """The course of a run, as far as it is known before training.

    Attributes:
        settings: of the run.
    """

    settings: Settings
    schedule: Schedule = field(init=False)
    averages: dict[str, Averaging] = field(init=False)

    def __post_init__(self) -> None:
        self.schedule = build("schedule", self.settings.schedule, Schedule)
        parts = {**self.settings.watch, OWN: self.settings.averaging}
        epochs = self.schedule.epochs
        self.averages = {name: Averaging(part, epochs) for name, part in parts.items()}
        self._recipe = self.settings.recipe()
        self._keys: dict[int, str] = {}

    @property
    def total_epochs(self) -> int:
        """The length of the training."""
        return self.schedule.total_epochs

    @property
    def phase_ends(self) -> list[int]:
        """The epochs that end a phase."""
        return [phase.end for phase in self.schedule.phases]

    @property
    def sharable(self) -> bool:
        """Whether it is known beforehand what its averages average, and when one replaces."""
        return all(one.averager.windows is not None for one in self.averages.values())

    @property
    def origin(self) -> str:
        """A hash of what is settled before the first epoch."""
        return digest(self._origin())

    @property
    def looks(self) -> dict[str, Any]:
        """What is looked at on the way: it shapes the record of the epochs, not the weights."""
        return {
            "evaluation": self.settings.evaluation.model_dump(),
            "batchnorm_batches": self.settings.batchnorm_batches,
        }

    def _origin(self) -> dict[str, Any]:
        names = ("dataset", "model", "optimizer", "batch_size", "seed")
        return {
            "numerics_version": NUMERICS_VERSION,
            **{name: self._recipe[name] for name in names},
        }

    def part(self, epochs: int) -> dict[str, Any]:
        """Return the recipe's part for the first `epochs` epochs.

        Raises:
            ValueError: if the training is shorter.
        """
        if not 0 < epochs <= self.total_epochs:
            raise ValueError(f"epochs={epochs} must be from 1 to {self.total_epochs}")
        part = {**self._origin(), "phases": self._phases(epochs)}
        part["boundaries"] = [
            self._boundary(phase.index) for phase in self.schedule.phases if phase.end < epochs
        ]
        if not self.sharable:
            own = {name: self._recipe[name] for name in ("averaging", "schedule")}
            part |= own | {"watch": self.settings.watch}
        return part

    def _phases(self, epochs: int) -> list[Any]:
        """Return the rates of each epoch, phase by phase, as multiples of the optimizer's."""
        shape = self.schedule.shape
        found = []
        for phase in self.schedule.phases:
            done = range(min(phase.end, epochs) - phase.first_epoch)
            if not done:
                break
            if getattr(shape, "per", "step") == "epoch":
                found.append([phase.factor * shape.factor(t, phase.epochs) for t in done])
            else:  # between steps it is the shape that says how the rate runs
                of = self._recipe["schedule"]["shape"]
                found.append([{"shape": of, "of": phase.epochs, "factor": phase.factor}, len(done)])
        return found

    def _boundary(self, phase: int) -> dict[str, Any]:
        """Return what happens between a phase and the next."""
        own = self.averages[OWN]
        boundary: dict[str, Any] = {"optimizer_state": self._recipe["optimizer_state"]}
        end = self.schedule.phases[phase].end
        for window in (w for w in own.averager.windows or () if w.stop == end):
            boundary["replacement"] = {
                "averaging": own.part,
                "window": (window.start, len(window)),
                "batchnorm_batches": self._recipe["batchnorm_batches"],
            }
        return boundary

    def key(self, epochs: int) -> str:
        """Return the prefix key's half that the recipe makes: a hash of `part`."""
        if epochs not in self._keys:
            self._keys[epochs] = digest(self.part(epochs))
        return self._keys[epochs]

    def needs(self, epochs: int) -> dict[str, str]:
        """Return the identities of the averages that have begun within `epochs` epochs, by name."""
        found = {name: average.identity(epochs) for name, average in self.averages.items()}
        return {name: identity for name, identity in found.items() if identity is not None}

    def named(self, epochs: int) -> str:
        """Return a readable name of the first `epochs` epochs."""
        parts = parts_of(self._recipe)
        words = [parts[name] for name in ("dataset", "model", "optimizer")]
        return "-".join([*words, f"seed{self.settings.seed}", f"epoch{epochs}"])


def execution_key(settings: Settings, device: torch.device) -> str:
    """Return the prefix key's other half: a hash of all that changes the last bits of a number.

    Args:
        settings: of the run.
        device: that it is trained on.
    """
    made = provenance(device, settings.execution.model_dump())
    execution = {k: v for k, v in made["execution"].items() if k not in SAME_NUMBERS}
    versions = {name: made["versions"][name] for name in ("torch", "cuda")}
    return digest({"device_type": device.type, **execution, **versions})[:8]


def cut_points(trajectories: Iterable[Trajectory]) -> dict[str, list[int]]:
    """Return by origin the epochs at which some trajectory ends a phase: there others may part."""
    ends: dict[str, set[int]] = {}
    for trajectory in trajectories:
        ends.setdefault(trajectory.origin, set()).update(trajectory.phase_ends)
    return {origin: sorted(epochs) for origin, epochs in ends.items()}


def pieces(
    trajectory: Trajectory, points: Mapping[str, Collection[int]]
) -> dict[tuple[int, str], int]:
    """Return a trajectory cut into pieces: (last epoch, key there) and number of epochs of each."""
    cuts = [e for e in sorted(points[trajectory.origin]) if e <= trajectory.total_epochs]
    starts = [0, *cuts]
    return {
        (end, trajectory.key(end)): end - start for start, end in zip(starts, cuts, strict=False)
    }


def different_epochs(trajectories: Collection[Trajectory]) -> int:
    """Return how many epochs are different ones if trajectories part at the ends of phases."""
    points = cut_points(trajectories)
    found: dict[tuple[int, str], int] = {}
    for trajectory in trajectories:
        found |= pieces(trajectory, points)
    return sum(found.values())
