"""Snapshots saved during training, for Figures 1 to 3."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

from torch import Tensor, nn

from phaseavg.averaging.snapshots import read, to_bytes
from phaseavg.config import Settings
from phaseavg.errors import UserError, told
from phaseavg.phases import Schedule
from phaseavg.runs import weights
from phaseavg.runs.files import write_atomically
from phaseavg.runs.folder import TRAJECTORY
from phaseavg.training.optimizers import evaluation_weights
from phaseavg.training.state import TrainingState


def last_layer(model: nn.Module) -> dict[str, Tensor]:
    """Return weight and bias of the last linear layer, under their names in the network.

    Raises:
        UserError: if there is none.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            "save_trajectory=last_layer: the network has no linear layer; choices: epochs, steps"
        )
    layer = model.get_submodule(linear[-1])
    return {f"{linear[-1]}.{key}": value for key, value in layer.state_dict().items()}


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers."""
    return model.state_dict()


def ends_of_epochs(schedule: Schedule, steps_per_epoch: int) -> set[int]:
    """Return the step before the first, and those that end an epoch."""
    return {epoch * steps_per_epoch for epoch in range(schedule.total_epochs + 1)}


def and_last_steps(schedule: Schedule, steps_per_epoch: int) -> set[int]:
    """Return those and, of each phase's last epoch, the steps 1, 2, 4, … before its end."""
    backwards = [2**n for n in range(steps_per_epoch.bit_length()) if 2**n < steps_per_epoch]
    ends = [phase.end * steps_per_epoch for phase in schedule.phases]
    return ends_of_epochs(schedule, steps_per_epoch) | {e - b for e in ends for b in backwards}


KINDS: Mapping[
    str, tuple[Callable[[nn.Module], dict[str, Tensor]], Callable[[Schedule, int], set[int]]]
] = {
    "none": (everything, lambda schedule, steps: set()),
    "last_layer": (last_layer, ends_of_epochs),
    "epochs": (everything, ends_of_epochs),
    "steps": (everything, and_last_steps),
}
"""What each choice of `save_trajectory` saves, and after which steps; it includes those before."""


def require_writable(settings: Settings, model: nn.Module) -> None:
    """Check that what a run keeps of a network can be written.

    Raises:
        UserError: if it is not there, or cannot be written.
    """
    KINDS[settings.save_trajectory][0](model)
    if settings.save_weights:
        weights.require_writable(model)


class TrajectoryWriter:
    """Saves weights in `<run>/trajectory/step-<finished updates>.pt`.

    Args:
        settings: of the run.
        schedule: its phases.
        state: of the run, whose network is saved.

    Raises:
        UserError: if the network does not have what is to be saved.
    """

    def __init__(self, settings: Settings, schedule: Schedule, state: TrainingState) -> None:
        self.kind = settings.save_trajectory
        self.folder = settings.run_folder / TRAJECTORY
        self._state = state
        self._saved, steps = KINDS[self.kind]
        self.steps = sorted(steps(schedule, state.steps_per_epoch))
        self._due = frozenset(self.steps)

    @property
    def size(self) -> int:
        """Bytes of all of them together, but for some of their names."""
        tensors = self._saved(self._state.model).values()
        return len(self.steps) * sum(t.numel() * t.element_size() for t in tensors)

    def begin(self) -> None:
        """Check that there is room for the files to come, and save the initial weights.

        Raises:
            UserError: if there is not, or files of earlier steps are missing.
        """
        if self.kind == "none":
            return
        step = self._state.step
        before = [s for s in self.steps if s <= step and step > 0]
        missing = missing_steps(self.folder, before)
        lesser = [s for s in before if s not in missing and not self._is_whole(s)]
        if missing or lesser:
            raise UserError(
                f"save_trajectory={self.kind}: {self.folder.parent} has been trained to step "
                f"{step} without saving step {min([*missing, *lesser])}; move the folder away to "
                "start again"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        left = sum(s >= step for s in self.steps) / len(self.steps) * self.size
        if (free := shutil.disk_usage(self.folder).free) < left:
            raise UserError(
                f"save_trajectory={self.kind}: needs {left / 1e9:.3g} GB, and the disk of "
                f"runs_dir={self.folder.parent.parent} has {free / 1e9:.3g} GB; choices: "
                f"{', '.join(KINDS)}"
            )
        if step == 0:
            self.save(0)

    def _is_whole(self, step: int) -> bool:
        """Return whether the snapshot of a step has all that is to be saved."""
        saved = read_weights_after(self.folder, step)
        return self._saved(self._state.model).keys() <= saved.keys()

    def is_due(self, step: int) -> bool:
        """Return whether the weights after `step` updates are to be saved."""
        return step in self._due

    def save(self, step: int) -> None:
        """Save the network's present weights as those after `step` updates.

        Raises:
            UserError: if they cannot be written.
        """
        with evaluation_weights(self._state.optimizer):
            content = to_bytes(self._saved(self._state.model))
        place = f"runs_dir={self.folder.parents[1]}"
        write_atomically(path_of(self.folder, step), content, place)


def path_of(folder: Path, step: int) -> Path:
    """Return where the weights after `step` updates are."""
    return folder / f"step-{step:09d}.pt"


def missing_steps(folder: Path, steps: Iterable[int]) -> list[int]:
    """Return those of some steps of which there are no weights."""
    return [step for step in steps if not path_of(folder, step).is_file()]


def read_weights_after(folder: Path, step: int) -> dict[str, Tensor]:
    """Return the weights after `step` updates, by name, mapped into memory.

    Raises:
        UserError: if they are missing or damaged.
    """
    path = path_of(folder, step)
    try:
        return read(path)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(
            f"{path}: missing or damaged ({told(error)}); repeat the run with rerun=true"
        ) from error


def read_last_weight(folder: Path, step: int) -> Tensor | None:
    """Return the weight of the last linear layer, (classes, features), after `step` updates.

    None if the network has no such layer.
    """
    tensors = read_weights_after(folder, step)
    matrices = [t for name, t in tensors.items() if name.endswith("weight") and t.ndim == 2]
    return matrices[-1] if matrices else None
