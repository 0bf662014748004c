"""Build the parts of a run from its settings."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from phaseavg import processes
from phaseavg.averaging import RNA, Averager
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.data.interface import check_batch
from phaseavg.errors import UserError, describe
from phaseavg.phases import Schedule
from phaseavg.randomness import seed_for
from phaseavg.targets import Part, build, import_target, signature
from phaseavg.training.execution import apply_layout
from phaseavg.training.optimizers import new_optimizer
from phaseavg.training.state import TrainingState
from phaseavg.training.trajectory import weights_to_save


def assemble(settings: Settings, device: torch.device) -> tuple[DataSet, Schedule, TrainingState]:
    """Build the data set, the schedule and the initial training state of a run.

    Args:
        settings: the run's settings.
        device: the device for training.

    Raises:
        UserError: if a part rejects a value, or two parts are incompatible.
    """
    data = load_data(settings, device)
    model = new_model(settings, data)
    processes.copy_from_first(model.state_dict().values())
    weights_to_save(model, settings.save_trajectory)
    optimizer = new_optimizer(settings, model)
    schedule = build("schedule", settings.schedule, Schedule)

    def averager(name: str, part: Part, **epochs: Sequence[int]) -> Averager:
        offered = {"device": "cpu", "folder": settings.run_folder / "snapshots"}
        return build(name, part, Averager, offered=offered, model=model, **epochs)

    epochs = schedule.epochs
    own = {n: averager(f"observers.{n}", p, epochs=epochs) for n, p in settings.observers.items()}
    guests = {n: averager(f"share.guests.{n}", p) for n, p in settings.share.guests.items()}
    state = TrainingState(
        model,
        optimizer,
        averager("averaging", settings.averaging, epochs=epochs),
        data.steps_per_epoch,
        data.train_size,
        own | guests,
    )
    for name, one in {**state.observers, "average": state.averager}.items():
        if processes.count() > 1 and one.average and isinstance(one.average.weights, RNA):
            key = "averaging" if name == "average" else f"observers.{name}"
            raise UserError(
                f"{key}.weights=RNA: learnt weights need one process; start without torchrun"
            )
    for name, part in settings.observers.items():
        if state.observers[name].average is None:
            target = part["_target_"]
            raise UserError(f"observers.{name}={target}: computes no average; leave it out")
    return data, schedule, state


def load_data(settings: Settings, device: torch.device) -> DataSet:
    """Build the data set; its batches are on `device`.

    Raises:
        UserError: if the data set rejects a value, or cannot be divided between processes.
    """
    if processes.count() > 1:
        name = settings.dataset["_target_"]
        if not {"rank", "world_size"} <= signature(import_target(name)).parameters.keys():
            raise UserError(
                f"dataset={name}: has no parameters `rank` and `world_size`, so it cannot be "
                "divided between processes (docs/own.md)"
            )
        if message := processes.on_first(missing_data)(settings):
            raise UserError(message)
    offered = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "data_dir": settings.data_dir,
        "device": device,
        "workers": settings.execution.workers,
        "rank": processes.rank(),
        "world_size": processes.count(),
    }
    data = build("dataset", settings.dataset, DataSet, offered=offered)
    if not settings.dataset["_target_"].startswith("phaseavg."):  # ours check all images
        _check_first_batches(data, settings)
    return data


def _check_first_batches(data: DataSet, settings: Settings) -> None:
    shape = (data.channels, data.image_size, data.image_size)
    empty = torch.empty(0, *shape), torch.empty(0, dtype=torch.int64)
    batches = {"training": data.train_batches(0, 1), "test": data.test_batches()}
    first = {which: next(iter(split), empty) for which, split in batches.items()}
    of_all = int(processes.total(torch.tensor(len(first["training"][1]))))
    if processes.count() > 1 and of_all != min(data.batch_size, data.train_size):
        raise UserError(
            f"dataset={settings.dataset['_target_']}: the first batch of {data.batch_size} has "
            f"{of_all} images over {processes.count()} processes; each must yield only its share, "
            "rank::world_size"
        )
    for which, (images, labels) in first.items():
        if len(images) == 0 and processes.rank() > 0:  # the first process has the first batch
            continue
        try:
            check_batch(which, images, labels, shape, torch.float32, data.num_classes)
        except ValueError as error:
            raise UserError(f"dataset={settings.dataset['_target_']}: {error}") from error


def missing_data(settings: Settings) -> str | None:
    """Download missing files; return a message if that is not possible, else None.

    A data set may have a function `require` that raises a ValueError if files are missing. Its
    parameters are `data_dir` and arguments of the data set. It does not build the data set.
    """
    part = settings.dataset
    require = getattr(import_target(part["_target_"]), "require", None)
    if require is None:
        return None
    arguments = part | {"data_dir": settings.data_dir}
    try:
        require(**{n: arguments[n] for n in signature(require).parameters if n in arguments})
    except ValueError as error:
        return f"dataset: {error}"
    return None


def new_model(settings: Settings, data: DataSet) -> nn.Module:
    """Build the network: initialised on the CPU from the seed, then moved to the data's device.

    Raises:
        UserError: if the network does not fit the data set or the memory layout.
    """
    torch.manual_seed(seed_for(settings.seed, "initialisation"))
    offered = {
        "num_classes": data.num_classes,
        "in_channels": data.channels,
        "image_size": data.image_size,
    }
    model = build("model", settings.model, nn.Module, offered=offered)
    _require_fit(model, settings, data)
    if settings.execution.sync_batchnorm:
        _require_plain_batchnorm(model)
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return apply_layout(model, settings.execution, data.device)


def _require_plain_batchnorm(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and type(layer).forward is not _BatchNorm.forward:
            raise UserError(
                f"execution.sync_batchnorm=true: {type(layer).__name__} is more than a BatchNorm "
                "layer, and torch would leave out the rest; choices: false"
            )


def _require_fit(model: nn.Module, settings: Settings, data: DataSet) -> None:
    """Run a copy of the network, which leaves its BatchNorm statistics alone, on a small batch."""
    last = (data.train_size - 1) % data.batch_size + 1  # images in the last batch of an epoch
    if last < processes.count():
        raise UserError(
            f"batch_size={data.batch_size}: the last batch of an epoch has {last} image(s), too "
            f"few for {processes.count()} processes; change batch_size or start fewer processes"
        )
    smallest = min(2, last // processes.count())
    shape = (smallest, data.channels, data.image_size, data.image_size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = deepcopy(model)(torch.zeros(shape))
        if logits.shape == (smallest, data.num_classes):
            return
        problem = f"output shape {tuple(logits.shape)} instead of {(smallest, data.num_classes)}"
    except Exception as error:
        problem = describe(error)
    raise UserError(
        f"model={settings.model['_target_']}: must accept batches of "
        f"dataset={settings.dataset['_target_']} with batch_size={data.batch_size}, down to "
        f"{'×'.join(map(str, shape))}: {problem}"
    )
