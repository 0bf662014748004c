"""The state of a run between two steps, saved and loaded as one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from phaseavg.averaging import Averager
from phaseavg.training.optimizers import load_state


@dataclass
class TrainingState:
    """A run between two steps.

    Attributes:
        model: the raw network, neither compiled nor wrapped.
        optimizer: over its parameters.
        averager: decides when the average replaces the weights.
        observers: averagers by name whose averages are tested but never applied.
        guests: likewise, of other runs, that start from one of this run's prefixes.
        steps_per_epoch: updates in an epoch.
        train_size: images in an epoch.
        step: finished updates.
        losses: mean training loss of each batch of the present epoch, float32 (steps_per_epoch,) on
            the model's device; read once an epoch.
        wrong: misclassified training images of each of these batches, likewise.
        sizes: images in each of these batches, (steps_per_epoch,) on the CPU.
        seconds: spent in the present epoch, by kind.
        history: the metrics of every finished epoch.
        provenance: device, software and code that computed the steps: an entry for each that the
            run was continued with, in order; usually a single one.
        inherited: the epochs that come from a shared prefix: its segments, in order, with the
            prefix key at the end of each.
        inherited_seconds: seconds in the history and in `seconds` that were spent there.
    """

    model: nn.Module
    optimizer: Optimizer
    averager: Averager
    steps_per_epoch: int
    train_size: int
    observers: dict[str, Averager] = field(default_factory=dict)
    guests: dict[str, Averager] = field(default_factory=dict)
    step: int = 0
    losses: Tensor = field(init=False)
    wrong: Tensor = field(init=False)
    sizes: Tensor = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    inherited: list[dict[str, Any]] = field(default_factory=list)
    inherited_seconds: float = 0.0

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        self.losses = torch.zeros(self.steps_per_epoch, device=device)
        self.wrong = torch.zeros(self.steps_per_epoch, device=device)
        self.sizes = torch.zeros(self.steps_per_epoch, dtype=torch.int64)

    @property
    def averagers(self) -> dict[str, Averager]:
        """The averager, the observers and the guests, by name."""
        return {**self.observers, **self.guests, "average": self.averager}

    @property
    def averages(self) -> int:
        """How many averages they keep."""
        return sum(averager.average is not None for averager in self.averagers.values())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The history without guests, as the run's record has it."""
        return [{k: v for k, v in line.items() if k != "guests"} for line in self.history]

    def files(self) -> list[Path]:
        """Return the files that the state refers to."""
        averages = [a.average for a in self.averagers.values() if a.average is not None]
        return [path for average in averages for path in average.files()]

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state; tensors are shared with the run, so save before the next step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averagers": {name: one.state_dict() for name, one in self.averagers.items()},
            "train_size": self.train_size,
            "step": self.step,
            "losses": self.losses,
            "wrong": self.wrong,
            "sizes": self.sizes,
            "seconds": self.seconds,
            "history": self.history,
            "provenance": self.provenance,
            "inherited": self.inherited,
            "inherited_seconds": self.inherited_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: if it is of another version of the code, of other data, or of other
                observers.
        """
        if missing := self.state_dict().keys() - state.keys():
            raise ValueError(f"it was saved by another version of the code, without {min(missing)}")
        if state["train_size"] != self.train_size:
            raise ValueError(
                f"it was saved with {state['train_size']:,} training images, and now there are "
                f"{self.train_size:,}"
            )
        for name in self.guests.keys() - state["averagers"].keys():  # it began without them
            del self.guests[name]
        for name, averager in self.averagers.items():
            if name not in state["averagers"]:
                raise ValueError(f"observers.{name}: the run was begun without it")
            try:
                averager.load_state_dict(state["averagers"][name])
            except ValueError as error:
                field = f"observers.{name}" if name in self.observers else "averaging"
                raise ValueError(f"{field}: {error}") from error
        self.model.load_state_dict(state["model"])
        load_state(self.optimizer, state["optimizer"])
        self.step = state["step"]
        self.losses.copy_(state["losses"])
        self.wrong.copy_(state["wrong"])
        self.sizes.copy_(state["sizes"])
        self.seconds = state["seconds"]
        self.history = state["history"]
        self.provenance = state["provenance"]
        self.inherited = state["inherited"]
        self.inherited_seconds = state["inherited_seconds"]

    def continue_with(self, provenance: dict[str, Any]) -> None:
        """Add the provenance of the steps from here on."""
        if provenance not in self.provenance:
            self.provenance.append(provenance)


class Stopwatch:
    """Books the time since the last call as one kind of seconds.

    Args:
        device: whose work is waited for.
        seconds: by kind; changed in place.
    """

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self._device, self._seconds = device, seconds
        self._last = self._saved = time.perf_counter()

    def lap(self, kind: str) -> float:
        """Book the time since the last call as `kind`, and return it."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        elapsed = time.perf_counter() - self._last
        self._last += elapsed
        self._seconds[kind] = self.spent(kind) + elapsed
        return elapsed

    def spent(self, kind: str) -> float:
        """Return the seconds that are booked as `kind`."""
        return self._seconds.get(kind, 0.0)

    @contextmanager
    def booked(self, kind: str) -> Iterator[None]:
        """Book the time before as training, and that within the context as `kind`."""
        self.lap("train")
        yield
        self.lap(kind)

    def since_saving(self) -> float:
        """Return the seconds since the last checkpoint."""
        return time.perf_counter() - self._saved

    def saved(self) -> None:
        """Book the time since the last call as saving, and count from here to the next."""
        self.lap("saving")
        self._saved = self._last
