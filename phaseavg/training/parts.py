"""The parts of a run, built from its settings."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from hydra.utils import get_object
from torch import nn

from phaseavg.averaging import Averager
from phaseavg.config import LARGEST, Settings
from phaseavg.data import DataSet
from phaseavg.data.interface import check_batch
from phaseavg.errors import UserError
from phaseavg.phases import Schedule
from phaseavg.randomness import seed_for
from phaseavg.targets import Part, build, signature
from phaseavg.training.execution import laid_out, pick_device
from phaseavg.training.optimizers import learning_rate, new_optimizer
from phaseavg.training.state import TrainingState
from phaseavg.training.trajectory import require_writable


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
    require_writable(settings, model)
    optimizer = new_optimizer(settings, model)
    schedule = build("schedule", settings.schedule, Schedule)
    rate, factor = learning_rate(optimizer), max(phase.factor for phase in schedule.phases)
    if rate * factor > LARGEST:
        raise UserError(
            f"schedule.factors={settings.schedule['factors']}: times the learning rate {rate:g}, "
            f"must be at most {LARGEST:g}"
        )
    epochs = schedule.epochs
    averager = new_averager("averaging", settings.averaging, settings, model, epochs)
    observers = {
        name: new_averager(f"observers.{name}", part, settings, model, epochs)
        for name, part in settings.observers.items()
    }
    for name, observer in observers.items():
        if observer.average is None:
            target = settings.observers[name]["_target_"]
            raise UserError(f"observers.{name}={target}: averages nothing")
    steps, images = data.steps_per_epoch, data.train_size
    guests = {
        name: new_averager(f"share.guests.{name}", one.averaging, settings, model, one.epochs)
        for name, one in settings.share.guests.items()
    }
    state = TrainingState(
        model, optimizer, averager, steps, images, observers=observers, guests=guests
    )
    return data, schedule, state


def new_averager(
    name: str,
    part: Part,
    settings: Settings,
    model: nn.Module,
    epochs: Sequence[int],
) -> Averager:
    """Return one averager of a run, before its first phase.

    Args:
        name: where `part` stands in the config.
        part: its target and arguments.
        settings: of the run.
        model: the network in training.
        epochs: T_p of each phase.
    """
    home = pick_device(settings.execution.average_device, "execution.average_device")
    offered = {"device": home, "folder": settings.run_folder / "snapshots"}
    return build(name, part, Averager, offered=offered, model=model, epochs=epochs)


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
    data = build("dataset", settings.dataset, offered=offered)
    if not isinstance(data, DataSet):
        names = {*DataSet.__annotations__, *vars(DataSet)}
        missing = sorted(n for n in names if n[0] != "_" and not hasattr(data, n))
        raise UserError(
            f"dataset={settings.dataset['_target_']} returns no DataSet but a "
            f"{type(data).__name__}, without {', '.join(missing)}"
        )
    if not type(data).__module__.startswith("phaseavg."):  # ours check all of their images
        _require_sound_batches(data, settings)
    return data


def _require_sound_batches(data: DataSet, settings: Settings) -> None:
    """Look at the first training and test batch of a data set.

    Raises:
        UserError: if their images or labels are not what a network trains on.
    """
    shape = (data.channels, data.image_size, data.image_size)
    nothing = torch.empty(0, *shape), torch.empty(0, dtype=torch.int64)
    batches = {"training": data.train_batches(0, 1), "test": data.test_batches()}
    for which, found in batches.items():
        images, labels = next(iter(found), nothing)
        try:
            check_batch(which, images, labels, shape, torch.float32, data.num_classes)
        except ValueError as error:
            raise UserError(f"dataset={settings.dataset['_target_']}: {error}") from error


def missing_data(settings: Settings) -> str | None:
    """Return what of a data set's files is missing and not to be had; None if nothing is known.

    A data set may have a function `require`, which gets `data_dir` and of the data set's arguments
    those that it names. It checks files, and raises a ValueError, without making the data set.
    """
    part = settings.dataset
    require = getattr(get_object(part["_target_"]), "require", None)
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
    expected = (smallest, data.num_classes)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = deepcopy(model)(torch.zeros(shape))
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        problem = None if found == expected else f"it returns {found} instead of {expected}"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        raise UserError(
            f"model={settings.model['_target_']} does not fit the batches of "
            f"dataset={settings.dataset['_target_']} with batch_size={data.batch_size}, down to "
            f"{'×'.join(map(str, shape))}: {' '.join(problem.split())}"
        )
