"""The training loop: Algorithm 1 of the paper, resumable at any step."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
from torch import nn

from phaseavg import processes
from phaseavg.averaging import Averager, recompute_batchnorm
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.errors import Diverged, OutOfTime
from phaseavg.phases import Schedule
from phaseavg.runs.folder import RunFolder
from phaseavg.signals import StopSignals
from phaseavg.tracking import Tracking
from phaseavg.training.evaluation import evaluate
from phaseavg.training.execution import autocast
from phaseavg.training.optimizers import (
    evaluation_weights,
    finish,
    learning_rates,
    new_optimizer,
    set_learning_rate,
    weights_replaced,
)
from phaseavg.training.progress import TrainingProgress
from phaseavg.training.sharing import Sharing
from phaseavg.training.state import Stopwatch, TrainingState
from phaseavg.training.step import new_step
from phaseavg.training.trajectory import TrajectoryWriter

Metrics = dict[str, Any]


def train(
    state: TrainingState,
    data: DataSet,
    schedule: Schedule,
    settings: Settings,
    folder: RunFolder,
    tracking: Tracking,
    sharing: Sharing,
) -> None:
    """Train from `state.step` to the end of the schedule.

    Args:
        state: the training state, new or restored.
        data: the data set.
        schedule: the phases and learning rates.
        settings: the run's settings.
        folder: receives metrics and checkpoints.
        tracking: receives metrics.
        sharing: saves a prefix for other runs.

    Raises:
        Diverged: at the end of an epoch in which the loss was not finite.
        Interrupted: after a signal, once the state is saved.
        OutOfTime: after `settings.deadline`, once the state is saved.
    """
    steps, total_steps = state.steps_per_epoch, schedule.total_epochs * state.steps_per_epoch
    step = new_step(state, data, settings)
    trajectory = TrajectoryWriter(settings, schedule, state)
    clock = Stopwatch(data.device, state.seconds)

    def save() -> None:
        clock.lap("train")
        folder.save_checkpoint(state.step, state.state_dict(), state.files())
        clock.saved()

    def save_if_due(phase_ended: bool) -> None:
        """Save periodically and at phase ends; after a signal or the deadline, save and stop."""
        late = settings.deadline is not None and time.time() >= settings.deadline
        due = phase_ended or clock.since_saving() >= settings.checkpoint_seconds
        received, late, due = processes.highest([signals.received or 0, late, due])
        if received:
            signals.received = received
        stopping = received or (late and state.step < total_steps)
        if stopping or due:
            save()
        if stopping:
            position = (
                f"after step {state.step} (epoch {state.step / steps:.2f} of "
                f"{schedule.total_epochs}); saved in {folder.path}; rerun the same command to "
                "resume"
            )
            if signals.received:
                signals.stop(position)
            raise OutOfTime(f"out of time {position}")

    state.model.train()
    trajectory.begin()
    with StopSignals() as signals, TrainingProgress(schedule, state) as progress:
        batches = step.draws(state.step, total_steps)
        for epoch in range(len(state.history), schedule.total_epochs):
            phase = schedule.phase(epoch)
            for inputs, labels in islice(batches, (epoch + 1) * steps - state.step):
                set_learning_rate(state.optimizer, schedule.factor(state.step, steps))
                step(inputs, labels)
                if state.step in trajectory.steps:
                    with clock.timed("saving"):
                        trajectory.save(state.step)
                progress.step(state.step, lambda: train_error_so_far(state))
                if state.step % steps:  # after an epoch's last step, end_epoch comes first
                    save_if_due(phase_ended=False)
            if epoch + 1 == settings.share.prefix:
                with clock.timed("saving"):
                    sharing.save(state, folder)
                if signals.received is not None:
                    signals.stop("at the end of a prefix; rerun the same command to resume")
                break  # the runs that start from this prefix evaluate and average
            state.history.append(end_epoch(state, schedule, data, settings, clock))
            state.seconds.clear()
            phase_ended = epoch + 1 == phase.end
            if phase_ended and state.step < total_steps and settings.optimizer_state == "reset":
                finish(state.optimizer)
                state.optimizer = new_optimizer(settings, state.model)
            folder.write_metrics(state.history)
            progress.epoch(state.history)
            tracking.log(state.history[-1])
            save_if_due(phase_ended)
    finish(state.optimizer)


def end_epoch(
    state: TrainingState, schedule: Schedule, data: DataSet, settings: Settings, clock: Stopwatch
) -> Metrics:
    """Update the averages, run due evaluations, at a phase end replace the weights; return metrics.

    Raises:
        Diverged: if the epoch's losses or the weights are not finite.
    """
    model, averager, cadence = state.model, state.averager, settings.evaluation
    processes.copy_from_first(model.buffers())  # each has the statistics of its share
    epoch = state.step // state.steps_per_epoch
    phase = schedule.phase(epoch - 1)
    last_factor = schedule.factor(state.step - 1, state.steps_per_epoch)
    rate, *_ = learning_rates(state.optimizer, last_factor)
    phase_ended = epoch == phase.end
    average_due = phase_ended or is_due(epoch, cadence.average_every)
    evaluator = Evaluator(data, settings, epoch, clock)
    metrics: Metrics = {
        "epoch": epoch,
        "phase": phase.index + 1,
        "step": state.step,
        "learning_rate": rate,
        "train": training_metrics(state, rate),
    }
    clock.lap("train")
    with evaluation_weights(state.optimizer):
        if phase_ended or is_due(epoch, cadence.every):
            metrics["weights"] = evaluator(model)
        if phase_ended or is_due(epoch, cadence.batchnorm_every):
            metrics["bn"] = evaluator.after_batchnorm(deepcopy(model))

        kind = "observers"
        for name, observer in state.observers.items():
            before = clock.spent(kind)
            observer.epoch_end(model, replace=False)
            averaging = clock.lap(kind)
            test = evaluator.average(observer, model, phase_ended, kind) if average_due else {}
            evaluation = clock.spent(kind) - before - averaging
            seconds = {"averaging": averaging, "evaluation": evaluation}
            metrics.setdefault(kind, {})[name] = test | {"seconds": seconds}

        replaced = averager.epoch_end(model)
        clock.lap("averaging")
        if replaced:
            weights_replaced(state.optimizer)
            for observer in state.observers.values():
                observer.restart(model)
            metrics["average"] = {
                "without_bn": evaluator(model),
                **evaluator.after_batchnorm(model, "averaging"),
                **described(averager),
            }
        elif average_due and (test := evaluator.average(averager, model, phase_ended)):
            metrics["average"] = test
    if phase_ended:
        metrics["replaced"] = replaced
    if evaluator.images:
        metrics["test_images"] = evaluator.images
    metrics["images_per_second"] = metrics["train"]["images"] / clock.spent("train")
    metrics["seconds"] = dict(state.seconds)
    return metrics


class Evaluator:
    """Evaluates models at the end of an epoch and records the time.

    Args:
        data: the data set, whose training images are used by BatchNorm passes.
        settings: the run's settings.
        epoch: finished epochs, which select the images of a partial BatchNorm pass.
        clock: stopwatch that records the time.
    """

    def __init__(self, data: DataSet, settings: Settings, epoch: int, clock: Stopwatch) -> None:
        self._data, self._settings, self._epoch, self._clock = data, settings, epoch, clock
        self.images = 0

    def __call__(self, model: nn.Module, kind: str = "evaluation") -> Metrics:
        """Return the loss (None if not finite, since JSON has no such number) and error (%)."""
        with self._forward_only():
            result = evaluate(model, self._data.test_batches())
        self._clock.lap(kind)
        self.images = result.images
        loss = result.loss if math.isfinite(result.loss) else None
        return {"loss": loss, "error": result.error}

    def after_batchnorm(
        self, model: nn.Module, bn_kind: str = "evaluation", kind: str = "evaluation"
    ) -> Metrics:
        """Recompute the BatchNorm statistics of `model` and evaluate it."""
        batches = self._data.batchnorm_batches(self._epoch, self._settings.batchnorm_batches)
        with self._forward_only():
            recompute_batchnorm(model, batches)
        self._clock.lap(bn_kind)
        return self(model, kind)

    def average(
        self, averager: Averager, model: nn.Module, phase_ended: bool, kind: str = "evaluation"
    ) -> Metrics:
        """Evaluate the average in a copy of `model`; at phase ends also before a BatchNorm pass."""
        if averager.observed[0] == 0:
            return {}
        replica = deepcopy(model)
        averager.copy_to(replica)
        if not phase_ended:
            return self.after_batchnorm(replica, kind, kind)
        without_bn = self(replica, kind)
        tests = self.after_batchnorm(replica, kind, kind)
        return {"without_bn": without_bn, **tests, **described(averager)}

    @contextmanager
    def _forward_only(self) -> Iterator[None]:
        # Each pass has its own context, since autocast caches weights that may change in between.
        precision = self._settings.execution.precision
        with torch.inference_mode(), autocast(self._data.device, precision):
            yield


def described(averager: Averager) -> Metrics:
    """Return the coefficients of the epochs in an average, and notes; {} before its first epoch."""
    if averager.average is None or not (coefficients := averager.coefficients()):
        return {}
    return {"coefficients": coefficients, **averager.average.notes}


def training_metrics(state: TrainingState, rate: float) -> Metrics:
    """Return the number of training images of the epoch, and their mean loss and error (%).

    Raises:
        Diverged: if a loss, or a weight after the last update, is not finite.
    """
    values = state.batch_values()
    losses, wrong = torch.stack([values["losses"], values["wrong"]]).cpu().double()
    bad = (~losses.isfinite()).nonzero()
    step, reason = state.step, None
    if len(bad):
        step += int(bad[0]) + 1 - state.steps_per_epoch
        reason = f"the training loss became {losses[bad[0]].item()}"
    elif not torch.stack([p.isfinite().all() for p in state.model.parameters()]).all():
        reason = "the weights are no longer finite"
    if reason is not None:
        epoch = state.step // state.steps_per_epoch
        raise Diverged({"reason": reason, "step": step, "epoch": epoch, "learning_rate": rate})
    images = int(values["sizes"].sum())
    loss = (losses @ values["sizes"].double()).item() / images
    return {"images": images, "loss": loss, "error": 100 * wrong.sum().item() / images}


def train_error_so_far(state: TrainingState) -> float:
    """Return the training error (%) over the batches of the current epoch so far."""
    batches = (state.step - 1) % state.steps_per_epoch + 1
    return 100 * state.wrong[:batches].sum().item() / int(state.sizes[:batches].sum())


def is_due(epoch: int, every: int) -> bool:
    """Return whether `epoch` is a multiple of `every`; False if `every` is 0."""
    return every > 0 and epoch % every == 0
