"""Describe a run before it starts."""

from datetime import timedelta

from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.phases import Schedule
from phaseavg.runs.provenance import device_name
from phaseavg.targets import Part, is_part
from phaseavg.training.optimizers import learning_rates
from phaseavg.training.state import Stopwatch, TrainingState
from phaseavg.training.step import new_step

WARM_UP, TIMED = 5, 10  # steps; the fourth captures the CUDA graph


def describe_part(part: Part) -> str:
    """Return a part's name and arguments: `SGD(lr=0.1, momentum=0.9)`."""
    arguments = ", ".join(
        f"{key}={describe_part(value) if is_part(value) else value}"
        for key, value in part.items()
        if key != "_target_" and value is not None
    )
    return f"{part['_target_'].rpartition('.')[2]}({arguments})"


def start_line(settings: Settings, data: DataSet, schedule: Schedule, state: TrainingState) -> str:
    """Return the line printed before a run: length, first step, parameters, optimizer, device."""
    last = state.shared["epochs"]
    shared = f", {last} epochs shared with other runs" if last else ""
    parameters = sum(p.numel() for p in state.model.parameters())
    return (
        f"{schedule.total_epochs} epochs of {data.steps_per_epoch} steps in "
        f"{len(schedule.phases)} phases, from step {state.step}{shared}; "
        f"{parameters:,} parameters; {describe_part(settings.optimizer)}; {data.device}"
    )


def preview(settings: Settings, data: DataSet, schedule: Schedule, state: TrainingState) -> str:
    """Return the parts, phases and estimated time of a run, for `dry_run=true`.

    Args:
        settings: the run's settings.
        data: the data set.
        schedule: the phases of the run.
        state: the initial training state; timing some steps changes it.
    """
    begun = any(settings.run_folder.glob("checkpoint-*.pt"))
    lines = {
        "run": f"{settings.run_folder} ({'started; would resume' if begun else 'not started'})",
        "data": f"{describe_part(settings.dataset)}: {data.train_size:,} training and "
        f"{data.test_size:,} test images, {data.channels}×{data.image_size}×{data.image_size}, "
        f"{data.num_classes} classes",
        "network": describe_part(settings.model),
        "averaging": describe_part(settings.averaging),
        **{f"observers.{name}": describe_part(part) for name, part in settings.observers.items()},
    }
    steps = state.steps_per_epoch
    rate, *_ = learning_rates(state.optimizer, 1)
    for phase in schedule.phases:
        ends = phase.first_epoch * steps, phase.end * steps - 1
        rates = dict.fromkeys(f"{rate * schedule.factor(step, steps):.3g}" for step in ends)
        lines[f"phase {phase.index + 1}"] = (
            f"{phase.epochs} epochs, {phase.epochs * steps:,} steps at learning rate "
            f"{' to '.join(rates)}"
        )
    first_line = start_line(settings, data, schedule, state)
    seconds = _seconds_per_step(settings, data, state)
    total = timedelta(seconds=round(schedule.total_epochs * steps * seconds))
    lines["time"] = (
        f"about {total} of training, at {1000 * seconds:.3g} ms a step on "
        f"{device_name(data.device)}; excluding evaluation and averaging"
    )
    width = max(map(len, lines))
    shown = [f"{key:<{width}}  {text}" for key, text in lines.items()]
    return "\n".join([first_line, *shown])


def _seconds_per_step(settings: Settings, data: DataSet, state: TrainingState) -> float:
    """Return the mean seconds of a training step. This trains `state`; do not use it afterwards."""
    step, clock = new_step(state, data, settings), Stopwatch(data.device, {})
    state.model.train()
    for number, drawn in enumerate(step.draws(0, WARM_UP + TIMED)):
        if number == WARM_UP:
            clock.lap("warm-up")
        step(*drawn)
    return clock.lap("train") / TIMED
