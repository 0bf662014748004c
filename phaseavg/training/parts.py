"""The parts of a run, built from its settings."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn

from phaseavg.averaging import Averager
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.data.interface import check_batch
from phaseavg.errors import UserError, told
from phaseavg.phases import Schedule
from phaseavg.randomness import seed_for
from phaseavg.runs.weights import require_writable
from phaseavg.targets import Part, build, import_target, signature
from phaseavg.training.execution import laid_out, pick_device
from phaseavg.training.optimizers import new_optimizer
from phaseavg.training.state import TrainingState
from phaseavg.training.trajectory import saved_weights


def assemble(settings: Settings, device: torch.device) -> tuple[DataSet, Schedule, TrainingState]:
    """Return data set and schedule of a run, and its state before the first step.

    Args:
        settings: of the run.
        device: that it is trained on.

    Raises:
        UserError: if a part refuses a value, or does not fit another.
    """
    data = load_data(settings, device)
    model = new_model(settings, data)
    saved_weights(model, settings.save_trajectory)
    if settings.save_weights:
        require_writable(model)
    optimizer = new_optimizer(settings, model)
    schedule = build("schedule", settings.schedule, Schedule)

    def averager(name: str, part: Part, epochs: Sequence[int] = schedule.epochs) -> Averager:
        home = pick_device(settings.execution.average_device, "execution.average_device")
        offered = {"device": home, "folder": settings.run_folder / "snapshots"}
        return build(name, part, Averager, offered=offered, model=model, epochs=epochs)

    state = TrainingState(
        model,
        optimizer,
        averager("averaging", settings.averaging),
        data.steps_per_epoch,
        data.train_size,
        {name: averager(f"observers.{name}", part) for name, part in settings.observers.items()},
        {
            name: averager(f"share.guests.{name}", guest.averaging, guest.epochs)
            for name, guest in settings.share.guests.items()
        },
    )
    for name, observer in state.observers.items():
        if observer.average is None:
            target = settings.observers[name]["_target_"]
            raise UserError(f"observers.{name}={target}: averages nothing")
    return data, schedule, state


def load_data(settings: Settings, device: torch.device) -> DataSet:
    """Return the data set, whose batches are on `device`."""
    offered = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "data_dir": settings.data_dir,
        "device": device,
        "workers": settings.execution.workers,
        "flipped_copy": settings.execution.flipped_copy,
    }
    data = build("dataset", settings.dataset, DataSet, offered=offered)
    if not type(data).__module__.startswith("phaseavg."):  # ours check all of their images
        _check_first_batches(data, settings)
    return data


def _check_first_batches(data: DataSet, settings: Settings) -> None:
    shape = (data.channels, data.image_size, data.image_size)
    nothing = torch.empty(0, *shape), torch.empty(0, dtype=torch.int64)
    batches = {"training": data.train_batches(0, 1), "test": data.test_batches()}
    for which, split in batches.items():
        images, labels = next(iter(split), nothing)
        try:
            check_batch(which, images, labels, shape, torch.float32, data.num_classes)
        except ValueError as error:
            raise UserError(f"dataset={settings.dataset['_target_']}: {error}") from error


def missing_data(settings: Settings) -> str | None:
    """Return which files of a data set are missing and cannot be downloaded; None if unknown.

    A data set may have a function `require`, which gets `data_dir` and those of the data set's
    arguments that it names. It checks files, and raises a ValueError, without making the data set.
    """
    part = settings.dataset
    require = getattr(import_target(part["_target_"]), "require", None)
    if require is None:
        return None
    known = part | {"data_dir": settings.data_dir}
    try:
        require(**{name: known[name] for name in signature(require).parameters if name in known})
    except ValueError as error:
        return f"dataset: {error}"
    return None


def new_model(settings: Settings, data: DataSet) -> nn.Module:
    """Return the network on the data's device, initialised on the CPU by the run's seed.

    Raises:
        UserError: if it does not map the data set's images to its classes, or cannot be laid out in
            memory as asked for.
    """
    torch.manual_seed(seed_for(settings.seed, "initialisation"))
    offered = {
        "num_classes": data.num_classes,
        "in_channels": data.channels,
        "image_size": data.image_size,
    }
    model = build("model", settings.model, nn.Module, offered=offered)
    _require_fit(model, settings, data)
    return laid_out(model, settings.execution, data.device)


def _require_fit(model: nn.Module, settings: Settings, data: DataSet) -> None:
    """Try a copy of the network, whose BatchNorm layers count, on the smallest batch that comes."""
    smallest = min(2, (data.train_size - 1) % data.batch_size + 1)
    shape = (smallest, data.channels, data.image_size, data.image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = deepcopy(model)(torch.zeros(shape))
        if logits.shape == (smallest, data.num_classes):
            return
        problem = f"it returns {tuple(logits.shape)} instead of {(smallest, data.num_classes)}"
    except Exception as error:
        problem = told(error)
    raise UserError(
        f"model={settings.model['_target_']}: does not fit batches of "
        f"dataset={settings.dataset['_target_']} with batch_size={data.batch_size}, down to "
        f"{'×'.join(map(str, shape))}: {problem}"
    )
