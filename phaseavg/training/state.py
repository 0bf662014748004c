"""All that a run is at the end of a step: saved and loaded as one."""

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
        watching: further averagers by name, whose averages are looked at and replace nothing.
        watch: what each of these is, as in the config.
        steps_per_epoch: updates in an epoch.
        train_size: images in an epoch.
        step: finished updates.
        losses: mean training loss of each batch of the epoch under way, float32 (steps_per_epoch,)
            on the model's device; read once an epoch.
        wrong: misclassified training images of each of these batches, likewise.
        sizes: images in each of these batches, (steps_per_epoch,) on the CPU.
        seconds: spent in the epoch under way, by kind.
        history: a line of metrics for every finished epoch.
        provenance: with what the steps were computed: an entry for each different device, software
            or code that the run has been continued with, in order; of most runs a single one.
        inherited: the epochs that were not trained here but taken over from a shared trajectory:
            segments of it, in order, with the prefix key at the end of each.
        inherited_seconds: of what the history and `seconds` have, those that were spent there.
        carrying: whether `watching` has averages of other runs, for which this is their trajectory.
            Their time is then booked one by one.
    """

    model: nn.Module
    optimizer: Optimizer
    averager: Averager
    steps_per_epoch: int
    train_size: int
    watching: dict[str, Averager] = field(default_factory=dict)
    watch: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    losses: Tensor = field(init=False)
    wrong: Tensor = field(init=False)
    sizes: Tensor = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
    inherited: list[dict[str, Any]] = field(default_factory=list)
    inherited_seconds: float = 0.0
    carrying: bool = False

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        self.losses = torch.zeros(self.steps_per_epoch, device=device)
        self.wrong = torch.zeros(self.steps_per_epoch, device=device)
        self.sizes = torch.zeros(self.steps_per_epoch, dtype=torch.int64)

    @property
    def averagers(self) -> dict[str, Averager]:
        """All of them, by the names under which their averages are recorded."""
        return {**self.watching, "average": self.averager}

    @property
    def averages(self) -> int:
        """How many averages they keep."""
        return sum(averager.average is not None for averager in self.averagers.values())

    @property
    def epoch_is_open(self) -> bool:
        """Whether the last step ended an epoch that the history has not yet got a line of."""
        return self.step // self.steps_per_epoch > len(self.history)

    def booked(self, name: str, kind: str) -> str:
        """Return what the time for a watched average is booked as."""
        return f"{name}_{kind}" if self.carrying else "watching"

    def files(self) -> list[Path]:
        """Return the files that the state refers to and does not hold."""
        averages = [a.average for a in self.averagers.values() if a.average is not None]
        return [path for average in averages for path in average.files()]

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state; tensors are shared with the run, so save before the next step."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averagers": {name: one.state_dict() for name, one in self.averagers.items()},
            "watch": self.watch,
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
            ValueError: if it is of another version of the code, of other data, or was kept without
                an average that is to be watched.
        """
        if missing := self.state_dict().keys() - state.keys():
            raise ValueError(f"it is of another version of the code, without {min(missing)}")
        if state["train_size"] != self.train_size:
            raise ValueError(
                f"it is of {state['train_size']:,} training images, and now there are "
                f"{self.train_size:,}"
            )
        for name, part in self.watch.items():
            if part != state["watch"].get(name):
                raise ValueError(f"watch.{name} is not what has been watched from the start")
        for name, averager in self.averagers.items():
            averager.load_state_dict(state["averagers"][name])
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
        """Take note of what the steps from here on are computed with."""
        if provenance not in self.provenance:
            self.provenance.append(provenance)
