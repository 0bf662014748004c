"""Save and read the weights of a training trajectory, for Figures 1 to 3."""

from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError

from torch import Tensor, nn

from phaseavg.averaging.snapshots import read, to_bytes
from phaseavg.config import Settings
from phaseavg.errors import UserError, describe
from phaseavg.phases import Schedule
from phaseavg.processes import on_first
from phaseavg.runs.files import write_atomically
from phaseavg.runs.folder import TRAJECTORY
from phaseavg.training.optimizers import evaluation_weights
from phaseavg.training.state import TrainingState


def weights_to_save(model: nn.Module, kind: str) -> dict[str, Tensor]:
    """Return the tensors that `save_trajectory=kind` saves, by name in the network.

    Raises:
        UserError: if `kind` is `last_layer` and the network has no linear layer.
    """
    if kind != "last_layer":
        return model.state_dict()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(
            "save_trajectory=last_layer: the network has no linear layer; choices: epochs, steps"
        )
    layer = model.get_submodule(linear[-1])
    return {f"{linear[-1]}.{key}": value for key, value in layer.state_dict().items()}


def steps_to_save(kind: str, schedule: Schedule, steps_per_epoch: int) -> list[int]:
    """Return the steps after which `save_trajectory=kind` saves weights; 0 is the initial state.

    These are the ends of epochs and, for `steps`, the steps 1, 2, 4, … before the end of a phase.
    """
    if kind == "none":
        return []
    steps = {epoch * steps_per_epoch for epoch in range(schedule.total_epochs + 1)}
    if kind == "steps":
        backwards = [2**n for n in range(steps_per_epoch.bit_length()) if 2**n < steps_per_epoch]
        steps |= {p.end * steps_per_epoch - back for p in schedule.phases for back in backwards}
    return sorted(steps)


class TrajectoryWriter:
    """Saves weights in `<run>/trajectory/step-<finished updates>.pt`.

    Args:
        settings: the run's settings.
        schedule: the phases of the run.
        state: the training state with the network.

    Attributes:
        steps: the numbers of finished updates after which the weights have to be saved.
    """

    def __init__(self, settings: Settings, schedule: Schedule, state: TrainingState) -> None:
        self.kind = settings.save_trajectory
        self.folder = settings.run_folder / TRAJECTORY
        self.steps = frozenset(steps_to_save(self.kind, schedule, state.steps_per_epoch))
        self._state = state

    @on_first
    def begin(self) -> None:
        """Save the initial weights.

        Raises:
            UserError: if weights of earlier steps are missing.
        """
        if self.kind == "none":
            return
        step = self._state.step
        due = sorted(s for s in self.steps if s <= step and step > 0)
        missing = missing_steps(self.folder, due)
        if missing:
            raise UserError(
                f"save_trajectory={self.kind}: {self.folder.parent} was trained to step "
                f"{step} without saving step {missing[0]}; move the folder elsewhere and rerun"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if step == 0:
            self.save(0)

    @on_first
    def save(self, step: int) -> None:
        """Save the current weights as the weights after `step` updates.

        Raises:
            UserError: if the file cannot be written.
        """
        with evaluation_weights(self._state.optimizer):
            content = to_bytes(weights_to_save(self._state.model, self.kind))
        place = f"runs_dir={self.folder.parents[1]}"
        write_atomically(weights_path(self.folder, step), content, place)


def weights_path(folder: Path, step: int) -> Path:
    """Return the path of the weights after `step` updates."""
    return folder / f"step-{step:09d}.pt"


def missing_steps(folder: Path, steps: Iterable[int]) -> list[int]:
    """Return the steps without saved weights."""
    return [step for step in steps if not weights_path(folder, step).is_file()]


def read_weights_after(folder: Path, step: int) -> dict[str, Tensor]:
    """Return the weights after `step` updates, by name, memory-mapped.

    Raises:
        UserError: if the file is missing or damaged.
    """
    path = weights_path(folder, step)
    try:
        return read(path)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise UserError(
            f"{path}: missing or damaged ({describe(error)}); repeat the run with rerun=true"
        ) from error


def read_last_weight(folder: Path, step: int) -> Tensor | None:
    """Return the weight matrix of the last linear layer, (classes, features), after `step` updates.

    Returns None if the network has no linear layer.
    """
    tensors = read_weights_after(folder, step)
    matrices = [t for name, t in tensors.items() if name.endswith("weight") and t.ndim == 2]
    return matrices[-1] if matrices else None
