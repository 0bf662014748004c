"""Runs that go on from a trajectory that others share, as if it were all their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from phaseavg.config import Scalars, Settings
from phaseavg.errors import UserError
from phaseavg.runs.files import link, read_file
from phaseavg.runs.folder import RunFolder
from phaseavg.runs.prefix import OWN, Averaging, Trajectory, digest, execution_key
from phaseavg.runs.store import Branch, Store
from phaseavg.targets import Part
from phaseavg.training.progress import CARRIED
from phaseavg.training.state import TrainingState


class Carried(Scalars):
    """An average that a trajectory carries.

    Attributes:
        averaging: target and arguments.
        epochs: T_p of each phase, as of the run that it is for.
        until: the last branch point at which a run needs it.
    """

    averaging: Part
    epochs: list[int]
    until: int


class Wanted(Scalars):
    """What the runs of a sweep will go on from.

    Attributes:
        epoch: a branch point.
        averages: identities of those that are needed there.
    """

    epoch: int
    averages: list[str]


class Trunk(Scalars):
    """A trajectory that several runs share, to be trained once.

    Attributes:
        name: of its last epoch.
        points: epochs after whose last updates it leaves its state; it ends at the last of them.
        keys: of the recipe's part up to each of these.
        carry: the averages that it carries for the runs that branch off.
        wanted: by runs that are to be trained now; of the rest it is seen to on the way.
    """

    name: str
    points: list[int]
    keys: list[str]
    carry: list[Carried]
    wanted: list[Wanted]

    @property
    def id(self) -> str:
        """Its name and a hash of all that it is to do."""
        return f"{self.name}-{digest(self.model_dump())[:10]}"

    @staticmethod
    def path(store: Store, trunk_id: str) -> Path:
        """Return where it is written down."""
        return store.trajectories / f"{trunk_id}.json"

    def write(self, store: Store) -> None:
        """Write it down for the job that will train it."""
        store.write(self.path(store, self.id), self.model_dump())

    @classmethod
    def read(cls, store: Store, trunk_id: str) -> Self:
        """Read what a sweep has written down.

        Raises:
            UserError: if there is no such trajectory.
        """
        path = cls.path(store, trunk_id)
        try:
            return cls.model_validate_json(read_file(path))
        except (OSError, ValueError) as error:
            raise UserError(
                f"share.trunk={trunk_id}: there is no such file as {path}; a sweep sets it"
            ) from error


def store_of(settings: Settings) -> Store:
    """Return the store that a run shares with others."""
    return Store(settings.share.dir)


def shares(settings: Settings) -> bool:
    """Return whether a run goes on from what others have trained.

    One that is repeated does not, nor does one that keeps snapshots: of theirs there are none.
    """
    return settings.share.enabled and not settings.force and settings.snapshots == "none"


@dataclass
class Course:
    """A run or a trajectory that is about to be trained, as one that may go on from the store.

    Attributes:
        settings: of the run; of a trajectory, those of a run on it.
        device: that it is trained on.
        folder: of its own, for snapshots.
        carry: averages of other runs.
    """

    settings: Settings
    device: torch.device
    folder: Path
    carry: Sequence[Carried] = ()

    def __post_init__(self) -> None:
        self.trajectory = Trajectory(self.settings)
        self.store = store_of(self.settings)
        self.execution = execution_key(self.settings, self.device)
        own = self.trajectory.averages[OWN]
        self.averages, self.until = dict(self.trajectory.averages), {}
        for one in self.carry:
            average = Averaging(one.averaging, one.epochs)
            identity = average.identity(one.until)
            if identity != own.identity(one.until):  # its name is the same in any trajectory
                self.averages[f"{CARRIED}{identity}"] = average
                self.until[f"{CARRIED}{identity}"] = one.until

    def needs(self, epoch: int) -> dict[str, str]:
        """Return the identities of its averages after `epoch` epochs, by name."""
        needed = {n: a for n, a in self.averages.items() if self.until.get(n, epoch) >= epoch}
        found = {name: average.identity(epoch) for name, average in needed.items()}
        return {name: identity for name, identity in found.items() if identity}

    def restore(self, state: TrainingState, most: int | None = None) -> int:
        """Go on from the longest shared trajectory that is there and goes beyond `state`.

        Args:
            state: between two steps; it is changed.
            most: epochs that it may have; by default the whole training.

        Returns:
            The number of epochs that need not be trained; 0 if none is there.
        """
        if not self.trajectory.sharable:
            return 0
        most = most or self.trajectory.total_epochs
        there = {branch.key for branch in self.store.branches(execution=self.execution)}
        begun = -(-state.step // state.steps_per_epoch)  # epochs, the one under way included
        for epoch in range(most, begun, -1) if there else ():
            key = self.trajectory.key(epoch)
            if key not in there:
                continue
            for branch in self.find(epoch):
                if found := self.store.load(branch):
                    try:
                        self._take_snapshots(branch, found)
                    except FileNotFoundError:  # the user has removed the store meanwhile
                        continue
                    self._load(found, branch, state)
                    return epoch
        return 0

    def find(self, epoch: int) -> list[Branch]:
        """Return the states after `epoch` epochs that have all it needs."""
        key = self.trajectory.key(epoch)
        needs = self.needs(epoch).values()
        return self.store.find(key, self.execution, needs, self.trajectory.looks)

    def _load(self, found: Mapping[str, Any], branch: Branch, state: TrainingState) -> None:
        try:
            state.load_state_dict(self._adopted(found, branch, state))
        except ValueError as error:
            raise UserError(
                f"{branch.path}: does not fit: {error}; bring that back, remove "
                f"{self.store.folder}, or set share=false"
            ) from error

    def _take_snapshots(self, branch: Branch, found: Mapping[str, Any]) -> None:
        """Have the files that the averages refer to in the folder in which they look for them."""
        for identity in self.needs(branch.epoch).values():
            for name in found["snapshots"][branch.averages[identity]]:
                own, place = self.folder / "snapshots" / name, f"runs_dir={self.folder.parent}"
                link(self.store.snapshots / name, own, place, anew=True)

    def _adopted(
        self, found: Mapping[str, Any], branch: Branch, state: TrainingState
    ) -> dict[str, Any]:
        """Return a trajectory's state as one of one's own.

        Args:
            found: the trajectory's.
            branch: what it is.
            state: one's own, for what no average has begun of.
        """
        names = {own: branch.averages[i] for own, i in self.needs(branch.epoch).items()}
        averagers = {}
        for own, averager in state.averagers.items():
            saved = found["averagers"][names[own]] if own in names else averager.state_dict()
            # Of the trajectory's the average alone: its phases after this epoch may be others.
            averagers[own] = {
                **averager.state_dict(),
                "ended": branch.epoch - 1,
                "average": saved["average"],
            }
        spent = {f"{kind}_seconds": seconds for kind, seconds in found["seconds"].items()}
        *history, spent = (
            adopted_line(line, names, state.carrying) for line in (*found["history"], spent)
        )
        return {
            **found,
            "averagers": averagers,
            "watch": state.watch,
            "history": history,
            "seconds": {key.removesuffix("_seconds"): value for key, value in spent.items()},
            "inherited_seconds": sum(map(seconds_of, (*history, spent))),
        }


def adopted_line(
    line: Mapping[str, Any], names: Mapping[str, str], carrying: bool
) -> dict[str, Any]:
    """Return a line of a trajectory's metrics as it would be of a run that is trained alone.

    Args:
        line: of the trajectory.
        names: under which the trajectory has the averages, by the run's own names.
        carrying: whether it is for a trajectory again, whose averages have their time one by one.
    """
    replaced = line.get("replaced", False)  # by an average that the run has, too
    # Of what was carried on the way for others, not even the names are left at the end.
    kept_apart = (CARRIED,) if replaced else (CARRIED, f"{OWN}_")
    found = {key: value for key, value in line.items() if not key.startswith(kept_apart)}
    found.pop("saving_seconds", None)  # of the trajectory's own checkpoints
    if not replaced and names.get(OWN) != OWN:
        found |= {"averaging_seconds": 0.0} if "averaging_seconds" in line else {}  # not its own
    for own, name in names.items():
        if own == OWN and replaced:
            continue
        start = f"{name}_"
        fields = {k.removeprefix(start): v for k, v in line.items() if k.startswith(start)}
        for kind in ("averaging", "evaluation"):
            seconds = fields.pop(f"{kind}_seconds", None)
            if seconds is None:
                continue
            booked = kind if own == OWN else f"{own}_{kind}" if carrying else "watching"
            found[f"{booked}_seconds"] = found.get(f"{booked}_seconds", 0.0) + seconds
        found |= {f"{own}_{key}": value for key, value in fields.items()}
    return found


def seconds_of(line: Mapping[str, Any]) -> float:
    """Return all seconds that a line of metrics has."""
    return sum(value for key, value in line.items() if key.endswith("_seconds"))


def restore(
    state: TrainingState, folder: RunFolder, settings: Settings, device: torch.device
) -> None:
    """Go on from what is there of a run: its latest checkpoint, or a shared trajectory beyond it.

    Args:
        state: before the first step; it is changed.
        folder: of the run.
        settings: of the run.
        device: that it is trained on.

    Raises:
        UserError: if the checkpoint is of other code or data.
    """
    folder.restore(state)
    if shares(settings):
        Course(settings, device, folder.path).restore(state)


def inherited(state: TrainingState) -> dict[str, Any]:
    """Return what a run has taken over from shared trajectories, for its record.

    `epochs`, of whose last one the training alone; `seconds`, of those that its metrics have, that
    were spent there; and `segments` of these trajectories with all the seconds that each took. A
    segment that several runs have inherited was trained once.
    """
    last = state.inherited[-1]["last_epoch"] if state.inherited else 0
    found = {"epochs": last, "seconds": state.inherited_seconds, "segments": state.inherited}
    return {"inherited": found}
