"""Shared trajectories: what runs have in common, trained once.

A trajectory is trained as a run is, but ends at the last of its branch points. There and at those
before it leaves its state after the epoch's last update, before any average replaces the weights.
The averages of the runs that go on from there only watch: the trajectory carries them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.phases import Schedule
from phaseavg.runs.files import read_json
from phaseavg.runs.folder import RunFolder
from phaseavg.runs.prefix import OWN, Trajectory, execution_key
from phaseavg.runs.provenance import provenance, reset_peak_memory
from phaseavg.tracking import Tracking
from phaseavg.training.execution import prepare
from phaseavg.training.loop import train
from phaseavg.training.parts import assemble, new_averager
from phaseavg.training.progress import TrainingProgress
from phaseavg.training.sharing import Course, Trunk, seconds_of, store_of
from phaseavg.training.state import TrainingState


def train_trunk(settings: Settings) -> dict[str, Any]:
    """Train a trajectory that runs share, unless it is there, and leave its states in the store.

    Args:
        settings: of one of the runs on it; `share.trunk` names it.

    Returns:
        What became of it.
    """
    # What is to be watched it carries instead, if it has to.
    settings = settings.model_copy(update={"watch": {}, "snapshots": "none"})
    settings, device = prepare(settings)  # before keys, which name threads, are made
    store = store_of(settings)
    trunk = Trunk.read(store, str(settings.share.trunk))
    home = store.trajectories / home_of(settings, device)
    course = Course(settings, device, home, trunk.carry)
    with RunFolder(home, wait=True) as folder:
        if there_already(trunk, course):
            print(f"{trunk.name}: there already", flush=True)
            return {"run_id": trunk.id, "status": "there already"}
        missing = [e for e in trunk.points if not there(course, e, course.needs(e).values())]
        leaving = Leaving(course, trunk, missing)
        reset_peak_memory(device)
        data, schedule, state = assembled(course, device)
        if (checkpoint := resumable(folder, course, state, missing[0])) is not None:
            leaving.drop(state, checkpoint["step"] // state.steps_per_epoch)
            state.load_state_dict(checkpoint)
        course.restore(state, most=missing[0])
        leaving.drop(state, (state.step - 1) // state.steps_per_epoch)
        state.continue_with(provenance(device, settings.execution.model_dump()))
        print(opening(trunk, data, state), flush=True)
        store.write(home / PATH, path_of(course, missing[-1]))
        with TrainingProgress(schedule, state, epochs=missing[-1]) as progress:
            unheard = Tracking({}, {}, [])
            train(state, data, schedule, settings, folder, progress, unheard, leaving)
        folder.remove_checkpoints()
    return {"run_id": trunk.id, "status": "shared"}


PATH = "path.json"
"""In a trajectory's folder: which one its checkpoints are of."""


def home_of(settings: Settings, device: torch.device) -> str:
    """Return the name of the folder in which a trajectory is trained.

    All that begin alike have one, so that no two processes train the same epochs.
    """
    trajectory = Trajectory(settings)
    start = trajectory.named(0).removesuffix("-epoch0")
    return f"{start}-{trajectory.origin}-{execution_key(settings, device)}"


def path_of(course: Course, epochs: int) -> dict[str, Any]:
    """Return what the checkpoints of a trajectory have to be of to go on from them."""
    trajectory = course.trajectory
    return {
        "keys": {str(epoch): trajectory.key(epoch) for epoch in range(1, epochs + 1)},
        "looks": trajectory.looks,
        "own": trajectory.averages[OWN].part,
    }


def there(course: Course, epoch: int, needs: Iterable[str]) -> bool:
    """Return whether there is an intact state after an epoch that has averages of identities."""
    trajectory = course.trajectory
    found = course.store.find(trajectory.key(epoch), course.execution, needs, trajectory.looks)
    return any(map(course.store.load, found))


def there_already(trunk: Trunk, course: Course) -> bool:
    """Return whether all is there that the runs go on from, though maybe not for others."""
    return all(there(course, one.epoch, one.averages) for one in trunk.wanted)


def assembled(course: Course, device: torch.device) -> tuple[DataSet, Schedule, TrainingState]:
    """Return data set, schedule and first state of a trajectory, with all that it carries."""
    data, schedule, state = assemble(course.settings, device, course.folder)
    state.carrying = True
    for name in course.until:
        average = course.averages[name]
        state.watching[name] = new_averager(
            f"watch.{name}",
            average.part,
            course.settings,
            state.model,
            average.epochs,
            course.folder,
        )
    return data, schedule, state


def resumable(
    folder: RunFolder, course: Course, state: TrainingState, point: int
) -> dict[str, Any] | None:
    """Return the latest checkpoint of a trajectory if it can go on from it; else it begins anew.

    Args:
        folder: of the trajectory.
        course: what it is now.
        state: before its first step.
        point: at which it has to leave a state next: beyond it a checkpoint is of no use.
    """
    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        return None
    steps, step = state.steps_per_epoch, checkpoint["step"]
    known, own = read_json(folder.path / PATH), path_of(course, point)
    under_way = str(-(-step // steps))
    carried = {name for name, until in course.until.items() if until > step // steps}
    if (
        step < point * steps
        and state.state_dict().keys() <= checkpoint.keys()  # else it is of an older version
        and checkpoint["train_size"] == state.train_size
        and carried <= checkpoint["averagers"].keys()
        and known.get("keys", {}).get(under_way) == own["keys"].get(under_way)
        and all(known.get(name) == own[name] for name in ("looks", "own"))
    ):
        return checkpoint
    print(f"{folder.path}: its checkpoint is of another trajectory; it begins anew", flush=True)
    folder.remove_checkpoints()
    return None


@dataclass
class Leaving:
    """Leaves the state of a trajectory at its branch points.

    Attributes:
        course: the trajectory.
        trunk: what it is to leave, and where.
        missing: the points at which there is no state yet; it ends at the last of them.
    """

    course: Course
    trunk: Trunk
    missing: Sequence[int]

    def drop(self, state: TrainingState, epochs: int) -> None:
        """Let go the averages that no run needs after `epochs` epochs."""
        for name in [name for name in state.watching if self.course.until[name] <= epochs]:
            del state.watching[name]

    def __call__(self, state: TrainingState) -> bool:
        """Leave the state if it is time to; return whether it was the last time."""
        epoch = state.step // state.steps_per_epoch
        if epoch not in self.trunk.points:
            return False
        self._account(state, epoch)
        if not self.course.find(epoch):
            self._leave(state, epoch)
        self.drop(state, epoch)
        return epoch == self.missing[-1]

    def _leave(self, state: TrainingState, epoch: int) -> None:
        course, averagers = self.course, state.averagers
        needs = {name: i for name, i in course.needs(epoch).items() if name in averagers}
        averages = {name: averagers[name].average for name in needs}
        files = {name: average.files() if average else [] for name, average in averages.items()}
        course.store.save(
            course.trajectory.key(epoch),
            course.execution,
            {
                **state.state_dict(),
                "snapshots": {name: [p.name for p in paths] for name, paths in files.items()},
            },
            [path for paths in files.values() for path in paths],
            name=course.trajectory.named(epoch),
            epoch=epoch,
            averages={identity: name for name, identity in needs.items()},
            looks=course.trajectory.looks,
        )

    def _account(self, state: TrainingState, epoch: int) -> None:
        """Note the epochs since the last point as a segment, which runs inherit as a whole."""
        first = state.inherited[-1]["last_epoch"] + 1 if state.inherited else 1
        if first > epoch:
            return
        spent = sum(map(seconds_of, state.history)) + sum(state.seconds.values())
        segment = {
            "trajectory": self.trunk.name,
            "prefix": f"{self.course.trajectory.key(epoch)}-{self.course.execution}",
            "first_epoch": first,
            "last_epoch": epoch,
            "seconds": spent - state.inherited_seconds,
        }
        state.inherited = [*state.inherited, segment]
        state.inherited_seconds = spent


def opening(trunk: Trunk, data: DataSet, state: TrainingState) -> str:
    """Return the first words of a trajectory: how long, from where, what it carries."""
    return (
        f"{trunk.name}: shared, {trunk.points[-1]} epochs of {data.steps_per_epoch} steps, from "
        f"step {state.step}; carries {state.averages} averages; leaves its state after epoch "
        f"{', '.join(map(str, trunk.points))}"
    )
