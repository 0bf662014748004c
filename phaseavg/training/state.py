"""The training state between two steps, which is saved and loaded as a whole."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from phaseavg import processes
from phaseavg.averaging import Averager
from phaseavg.training.optimizers import load_state

TENSORS = ("losses", "wrong", "sizes")
VALUES = ("step", "seconds", "history", "provenance", "shared")
"""Attributes of a `TrainingState` that are saved unchanged."""


@dataclass
class TrainingState:
    """The training state of a run between two steps."""

    model: nn.Module  # not compiled or wrapped
    optimizer: Optimizer
    averager: Averager  # decides when the average replaces the weights
    steps_per_epoch: int
    train_size: int  # images in an epoch
    # Evaluated but never applied; of a prefix, the averages of the runs that start from it.
    observers: dict[str, Averager] = field(default_factory=dict)
    step: int = 0  # finished updates
    # Values for each batch of the current epoch, (steps_per_epoch,); `sizes` is on the CPU.
    # Of several processes, each has the values of its share.
    losses: Tensor = field(init=False)  # mean training loss, float32
    wrong: Tensor = field(init=False)  # misclassified training images, float32
    sizes: Tensor = field(init=False)  # images, int64
    seconds: dict[str, float] = field(default_factory=dict)  # of the current epoch, by kind
    history: list[dict[str, Any]] = field(default_factory=list)  # metrics of finished epochs
    # Device, software and code of the steps; one entry for each environment of the run.
    provenance: list[dict[str, Any]] = field(default_factory=list)
    # Epochs taken from a shared prefix, of which the last includes only training, and their seconds
    # in `history` and `seconds`.
    shared: dict[str, float] = field(default_factory=lambda: {"epochs": 0, "seconds": 0.0})

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        self.losses = torch.zeros(self.steps_per_epoch, device=device)
        self.wrong = torch.zeros(self.steps_per_epoch, device=device)
        self.sizes = torch.zeros(self.steps_per_epoch, dtype=torch.int64)

    @property
    def averagers(self) -> dict[str, Averager]:
        """The averager and the observers, by name."""
        return {**self.observers, "average": self.averager}

    def batch_values(self) -> dict[str, Tensor]:
        """Return losses, errors and sizes of the current epoch's batches over all processes."""
        if processes.count() == 1:
            return {name: getattr(self, name) for name in TENSORS}
        sizes = processes.total(self.sizes)
        sums = processes.total(self.losses.double() * self.sizes.to(self.losses.device))
        losses = (sums / sizes.clamp(min=1).to(sums.device)).float()
        return {"losses": losses, "wrong": processes.total(self.wrong), "sizes": sizes}

    def files(self) -> list[Path]:
        """Return the files that the state refers to."""
        averages = [a.average for a in self.averagers.values() if a.average is not None]
        return [path for average in averages for path in average.files()]

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state. It shares the run's tensors: save it before the next step.

        All processes must call this; the state may be restored with another number of processes.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averagers": {name: a.state_dict() for name, a in self.averagers.items()},
            "train_size": self.train_size,
            **self.batch_values(),
            **{name: getattr(self, name) for name in VALUES},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            ValueError: if the data set or the observers differ.
            KeyError: if another version of the code saved the state.
        """
        if state["train_size"] != self.train_size:
            raise ValueError(
                f"it was saved with {state['train_size']:,} training images, but the data "
                f"set has {self.train_size:,}"
            )
        for name, averager in self.averagers.items():
            if name not in state["averagers"]:
                raise ValueError(f"observers.{name}: the run was started without this observer")
            try:
                averager.load_state_dict(state["averagers"][name])
            except ValueError as error:
                key = "averaging" if name == "average" else f"observers.{name}"
                raise ValueError(f"{key}: {error}") from error
        self.model.load_state_dict(state["model"])
        load_state(self.optimizer, state["optimizer"])
        for name in TENSORS:
            getattr(self, name).copy_(state[name])
            if processes.rank():  # the first process has the values of all shares
                getattr(self, name).zero_()
        for name in VALUES:
            setattr(self, name, state[name])

    def add_provenance(self, provenance: dict[str, Any]) -> None:
        """Add the provenance of the following steps, or move it to the end."""
        earlier = [entry for entry in self.provenance if entry != provenance]
        self.provenance = [*earlier, provenance]


class Stopwatch:
    """Measures time by kind; each lap synchronizes the device first."""

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self._device, self._seconds = device, seconds
        self._last = self._saved = time.perf_counter()

    def lap(self, kind: str) -> float:
        """Add the time since the last lap to `kind`, and return it."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        elapsed = time.perf_counter() - self._last
        self._last += elapsed
        self._seconds[kind] = self.spent(kind) + elapsed
        return elapsed

    def spent(self, kind: str) -> float:
        """Return the seconds measured for `kind`."""
        return self._seconds.get(kind, 0.0)

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Add the time before the context to `train`, and the time within to `kind`."""
        self.lap("train")
        yield
        self.lap(kind)

    def since_saving(self) -> float:
        """Return the seconds since the last checkpoint."""
        return time.perf_counter() - self._saved

    def saved(self) -> None:
        """End a lap of kind `saving`, and restart the time since the last checkpoint."""
        self.lap("saving")
        self._saved = self._last
