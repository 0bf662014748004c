"""Describe a run before it starts: its steps, and an estimate of its time."""

import math
import time
from copy import deepcopy

import torch
from torch import nn
from torch.optim import Optimizer

from phaseavg.averaging import Averager
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.phases import Schedule
from phaseavg.runs.provenance import device_name, peak_memory_bytes
from phaseavg.targets import Part
from phaseavg.training.optimizers import learning_rate, set_learning_rate
from phaseavg.training.state import TrainingState
from phaseavg.training.step import new_step
from phaseavg.training.trajectory import TrajectoryWriter

WARM_UP = 5  # untimed steps; a CUDA graph is recorded in the fourth
LEAST, MOST, ENOUGH_SECONDS = 2, 50, 3.0  # timed steps, and seconds after which they suffice

FORWARD_AND_BACKWARD = 3  # operations of both passes, as a multiple of the forward pass


def describe_optimizer(optimizer: Optimizer) -> str:
    """Return an optimizer's settings in words, including the kind of weight decay."""
    if isinstance(inner := getattr(optimizer, "inner", None), Optimizer):
        own = {k: v for k, v in vars(optimizer).items() if k[0] != "_" and v is not inner}
        words = ", ".join(f"{key} {value}" for key, value in own.items())
        return f"{type(optimizer).__name__}: {words}; around {describe_optimizer(inner)}"
    settings = {
        key: value
        for key, value in optimizer.defaults.items()
        if key not in ("weight_decay", "decoupled_weight_decay") and value not in (None, False, 0)
    }
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    decays = []
    everything = sum(len(group["params"]) for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        if group.get("decoupled_weight_decay"):  # torch's name for it
            kind = "decoupled from the gradient"
        elif type(optimizer).__module__.startswith(("torch.", "phaseavg.")):
            kind = "coupled, L2 in the gradient"
        else:
            kind = f"as {type(optimizer).__name__} defines it"
        count = len(group["params"])
        on = "all parameters" if count == everything else f"{count} of {everything} tensors"
        if decay := group.get("weight_decay", 0):
            decays.append(f"weight decay {decay:g} ({kind}) on {on}")
    return f"{type(optimizer).__name__}: {shown}; {', '.join(decays) or 'no weight decay'}"


def _words(part: Part) -> str:
    """Return a part's name and arguments: `resnet34(width=1.0)`."""
    arguments = ", ".join(
        f"{key}={_words(value) if isinstance(value, dict) else value}"
        for key, value in part.items()
        if key != "_target_" and value is not None
    )
    return f"{part['_target_'].rpartition('.')[2]}({arguments})"


def _with_prefix(count: float, unit: str) -> str:
    exponent = min(max(int(math.log10(max(count, 1))) // 3, 0), 6)
    return f"{count / 1000**exponent:.3g} {' kMGTPE'[exponent].strip()}{unit}"


def _time(seconds: float) -> str:
    """Return an estimated time in two digits."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.2g} ms"


def parameters_of(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in model.parameters())


def opening(settings: Settings, data: DataSet, schedule: Schedule, state: TrainingState) -> str:
    """Return what is printed before a run: its length, its first step, its optimizer."""
    last = state.inherited[-1]["last_epoch"] if state.inherited else 0
    shared = f", {last} epochs shared with other runs" if last else ""
    kept = described_trajectory(settings, schedule, state)
    lines = [
        f"{schedule.total_epochs} epochs of {data.steps_per_epoch} steps in "
        f"{len(schedule.phases)} phases, from step {state.step}{shared}; "
        f"{parameters_of(state.model):,} parameters; {data.device}",
        describe_optimizer(state.optimizer),
        *([f"save_trajectory={settings.save_trajectory}: {kept}"] if kept else []),
    ]
    return "\n".join(lines)


def training_flops(model: nn.Module, data: DataSet) -> int:
    """Return the floating-point operations of training on one image, a multiply-add being two."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, and no training needs it

    replica = deepcopy(model).eval()
    image = torch.zeros(1, data.channels, data.image_size, data.image_size, device=data.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        replica(image)
    return FORWARD_AND_BACKWARD * counter.get_total_flops()


def seconds_per_step(
    data: DataSet, schedule: Schedule, settings: Settings, state: TrainingState
) -> float:
    """Return the mean seconds of a training step. Trains `state`, which is of no use afterwards."""

    def now() -> float:
        if data.device.type != "cpu":
            torch.accelerator.synchronize(data.device)
        return time.perf_counter()

    step = new_step(state, data, settings)
    state.model.train()
    set_learning_rate(state.optimizer, schedule.factor(0, state.steps_per_epoch))
    start, timed = 0.0, 0
    for number, drawn in enumerate(step.draws(0, WARM_UP + MOST)):
        if number == WARM_UP:
            start = now()
        step(*drawn)
        timed = number + 1 - WARM_UP
        if timed >= LEAST and now() - start > ENOUGH_SECONDS:
            break
    return (now() - start) / timed


def described_averaging(part: Part, averager: Averager) -> str:
    """Return an averager in words, with the memory of its average."""
    if averager.average is None:
        return f"{type(averager).__name__}: nothing is averaged"
    longest = max(map(len, averager.windows or averager.phases))
    size, home = averager.average.storage(longest)
    return f"{_words(part)}; takes about {_with_prefix(size, 'B')} on {home}"


def described_trajectory(settings: Settings, schedule: Schedule, state: TrainingState) -> str:
    """Return how many files a run saves of its trajectory, their size and folder; none: nothing."""
    kept = TrajectoryWriter(settings, schedule, state)
    size = _with_prefix(kept.size, "B")
    return f"{len(kept.steps)} files, {size} in {kept.folder}" if kept.steps else ""


def rates_of(schedule: Schedule, state: TrainingState) -> list[list[float]]:
    """Return each phase's learning rate; the first and the last where it changes."""
    set_learning_rate(state.optimizer, 1)
    rate, steps = learning_rate(state.optimizer), state.steps_per_epoch
    rates = []
    for phase in schedule.phases:
        ends = (phase.first_epoch * steps, phase.end * steps - 1)
        first, last = (rate * schedule.factor(step, steps) for step in ends)
        rates.append([first] if first == last else [first, last])
    return rates


def preview(settings: Settings, data: DataSet, schedule: Schedule, state: TrainingState) -> str:
    """Return the steps, memory and estimated time of a run, for `dry_run=true`.

    Args:
        settings: of the run.
        data: its data set.
        schedule: its phases.
        state: before the first step; some steps are trained on it.
    """
    model = state.model
    parameters, flops = parameters_of(model), training_flops(model, data)
    steps = schedule.total_epochs * state.steps_per_epoch
    images = schedule.total_epochs * data.train_size
    rates = rates_of(schedule, state)
    print("measuring a few steps …", flush=True)
    seconds = seconds_per_step(data, schedule, settings, state)
    folder = settings.run_folder
    begun = any(folder.glob("checkpoint-*.pt"))
    lines = {
        "run": f"{folder} ({'started: would resume' if begun else 'not started'})",
        "data": f"{_words(settings.dataset)}: {data.train_size:,} images to train and "
        f"{data.test_size:,} to test, {data.channels}×{data.image_size}×{data.image_size}, "
        f"{data.num_classes} classes",
        "network": f"{_words(settings.model)}: {parameters:,} parameters, "
        f"{_with_prefix(flops, 'FLOP')} for each training image",
        "optimizer": describe_optimizer(state.optimizer),
        "averaging": described_averaging(settings.averaging, state.averager),
    }
    for name, averager in state.observers.items():
        lines[f"observers.{name}"] = described_averaging(settings.observers[name], averager)
    if kept := described_trajectory(settings, schedule, state):
        lines["trajectory"] = kept
    for phase in schedule.phases:
        first, last = phase.first_epoch + 1, phase.end
        lines[f"phase {phase.index + 1}"] = (
            f"{f'epoch {last}' if first == last else f'epochs {first}-{last}'}: "
            f"{phase.epochs * state.steps_per_epoch:,} steps at learning rate "
            f"{' to '.join(f'{rate:.3g}' for rate in rates[phase.index])}"
        )
    lines["in all"] = (
        f"{schedule.total_epochs} epochs, {steps:,} steps of {data.batch_size} images, {images:,} "
        f"images, {_with_prefix(images * flops, 'FLOP')}"
    )
    lines["memory"] = (
        f"{_with_prefix(peak_memory_bytes(data.device), 'B')} at its peak so far, on {data.device}"
    )
    lines["time"] = (
        f"about {_time(steps * seconds)} of training, at {_time(seconds)} a step on "
        f"{device_name(data.device)}; tests and averaging not counted"
    )
    width = max(map(len, lines))
    return "\n".join(f"{key:<{width}}  {text}" for key, text in lines.items())
