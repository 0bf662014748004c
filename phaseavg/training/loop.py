"""The training loop: Algorithm 1 of the paper, flat over steps, resumable from any of them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from phaseavg.averaging import Averager, recompute_batchnorm
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.data.interface import Draw
from phaseavg.errors import Diverged, Interrupted, OutOfTime
from phaseavg.phases import Phase, Schedule
from phaseavg.runs.folder import RunFolder
from phaseavg.tracking import Tracking
from phaseavg.training.evaluation import evaluate
from phaseavg.training.execution import autocast
from phaseavg.training.optimizers import (
    evaluation_weights,
    finish,
    learning_rate,
    new_optimizer,
    set_learning_rate,
    weights_replaced,
)
from phaseavg.training.progress import TrainingProgress
from phaseavg.training.signals import StopSignals
from phaseavg.training.snapshots import Snapshots
from phaseavg.training.state import TrainingState
from phaseavg.training.step import new_step


def train(
    state: TrainingState,
    data: DataSet,
    schedule: Schedule,
    settings: Settings,
    folder: RunFolder,
    progress: TrainingProgress,
    tracking: Tracking,
    branch: Callable[[TrainingState], bool] | None = None,
) -> None:
    """Train from `state.step` to the end of the schedule.

    Args:
        state: the run, maybe with updates already done.
        data: its data set.
        schedule: its phases.
        settings: of the run.
        folder: where it leaves metrics and checkpoints.
        progress: shows where it is.
        tracking: hears of each epoch.
        branch: called after each epoch's last update, while the epoch is open: what other runs go
            on from is taken there. True ends the training.

    Raises:
        Diverged: at the end of an epoch in which the loss was not finite.
        Interrupted: after a signal, once the state is saved.
        OutOfTime: likewise, when it is `settings.stop_at`.
    """
    steps, model = state.steps_per_epoch, state.model
    step = new_step(state, data, settings)
    snapshots = Snapshots(settings, schedule, model, steps)
    snapshots.begin(state.step)
    watch = Stopwatch(data.device, state)
    model.train()

    def keep_snapshot() -> None:
        if snapshots.is_due(state.step):
            watch.lap("train")
            with evaluation_weights(state.optimizer):
                snapshots.take(state.step)
            watch.lap("saving")

    def after_step() -> bool:
        """Do what is due after a step; return whether the training is over before its time."""
        phase = schedule.phase((state.step - 1) // steps)
        over = False
        keep_snapshot()
        if state.epoch_is_open and branch is not None:
            watch.lap("train")
            over = branch(state)
            watch.lap("saving")
        if state.epoch_is_open and not over:
            metrics = training_metrics(state)
            with evaluation_weights(state.optimizer):
                end_epoch(state, phase, data, settings, metrics, watch)
            folder.write_metrics(state.history)
            progress.epoch(state.history[-1])
            tracking.log(state.history[-1])
        progress.step(state.step, lambda: train_error_so_far(state))

        # Saving comes last: a checkpoint always stands for a finished step.
        late = settings.stop_at is not None and time.time() >= settings.stop_at
        done = state.step == schedule.total_epochs * steps
        stopping = signals.received or (late and not done and not over)
        phase_ended = state.step == phase.end * steps
        if not over and (
            phase_ended or stopping or watch.since_saving() >= settings.checkpoint_seconds
        ):
            watch.lap("train")
            folder.save_checkpoint(state.step, state.state_dict(), state.files())
            watch.saved()
        if stopping:
            where = (
                f"saved after step {state.step} (epoch {state.step / steps:.2f} of "
                f"{schedule.total_epochs}) in {folder.path}; the same command goes on"
            )
            if signals.received:
                raise Interrupted(signals.received, f"interrupted and {where}")
            raise OutOfTime(f"out of time and {where}")
        return over

    def drawn() -> Iterator[Draw]:
        """Yield the steps' data; should there be no more, all finished steps are saved."""
        try:
            yield from step.draws(state.step, schedule.total_epochs * steps)
        except Exception:
            folder.save_checkpoint(state.step, state.state_dict(), state.files())
            raise

    with StopSignals() as signals:
        if state.step == 0:
            keep_snapshot()
        if state.epoch_is_open and after_step():
            return
        for inputs, labels in drawn():
            phase = schedule.phase(state.step // steps)
            if phase.index > 0 and state.step == phase.first_epoch * steps:
                start_phase(state, settings)

            set_learning_rate(state.optimizer, schedule.factor(state.step, steps))
            step(inputs, labels)
            if after_step():
                return
    finish(state.optimizer)


def start_phase(state: TrainingState, settings: Settings) -> None:
    """Reset the optimizer between two phases if the settings say so."""
    if settings.optimizer_state == "reset":
        finish(state.optimizer)
        state.optimizer = new_optimizer(settings, state.model)


def end_epoch(
    state: TrainingState,
    phase: Phase,
    data: DataSet,
    settings: Settings,
    metrics: Mapping[str, float],
    watch: "Stopwatch",
) -> None:
    """Test, average, replace the weights if it is time to, and add a line to the history."""
    model, cadence = state.model, settings.evaluation
    epoch = state.step // state.steps_per_epoch  # finished ones
    phase_ended = epoch == phase.end
    line: dict[str, Any] = {
        "epoch": epoch,
        "phase": phase.index + 1,
        "step": state.step,
        "learning_rate": learning_rate(state.optimizer),
        **metrics,
    }
    watch.lap("train")

    def passes(function: Callable[..., Any], *arguments: Any) -> Any:
        # A context for each: autocast caches weights, and they are about to be replaced.
        with torch.inference_mode(), autocast(data.device, settings.execution.precision):
            return function(*arguments)

    def batchnorm_pass(network: nn.Module, kind: str = "evaluation") -> None:
        batches = data.batchnorm_batches(epoch, settings.batchnorm_batches)
        passes(recompute_batchnorm, network, batches)
        watch.lap(kind)

    def test(network: nn.Module, prefix: str = "", kind: str = "evaluation") -> None:
        found = passes(evaluate, network, data.test_batches())
        loss = found.loss if math.isfinite(found.loss) else None  # JSON has neither inf nor nan
        line.update({f"{prefix}test_loss": loss, f"{prefix}test_error": found.error})
        line["test_images"] = found.images
        watch.lap(kind)

    def test_average(name: str, averager: Averager, kind: str = "evaluation") -> None:
        if averager.observed[0] == 0:
            return
        replica = averager.averaged(model)
        if phase_ended:
            test(replica, f"{name}_without_bn_", kind)
        batchnorm_pass(replica, kind)
        test(replica, f"{name}_", kind)

    if phase_ended or is_due(epoch, cadence.every):
        test(model)
    if phase_ended or is_due(epoch, cadence.batchnorm_every):
        replica = deepcopy(model)
        batchnorm_pass(replica)
        test(replica, "bn_")

    averages_are_due = phase_ended or is_due(epoch, cadence.average_every)
    for name, observer in state.watching.items():
        observer.epoch_end(model, replace=False)
        watch.lap(state.booked(name, "averaging"))
        if averages_are_due:
            test_average(name, observer, state.booked(name, "evaluation"))
    replaced = state.averager.epoch_end(model)
    if phase_ended:
        line["replaced"] = replaced
        line |= coefficients(state)
    watch.lap("averaging")
    if replaced:
        weights_replaced(state.optimizer)
        for observer in state.watching.values():
            observer.restart(model)
        test(model, "average_without_bn_")
        batchnorm_pass(model, "averaging")
        test(model, "average_")
    elif averages_are_due:
        test_average("average", state.averager)

    line["images_per_second"] = line["train_images"] / state.seconds["train"]
    line |= {f"{kind}_seconds": seconds for kind, seconds in state.seconds.items()}
    state.seconds = {}
    state.history.append(line)


def coefficients(state: TrainingState) -> dict[str, Any]:
    """Return the weights of the epochs in the averages that have begun, and notes on them."""
    found: dict[str, Any] = {}
    for name, averager in state.averagers.items():
        if averager.average is not None and (weights := averager.coefficients()):
            found[f"{name}_coefficients"] = weights
            found |= {f"{name}_{key}": note for key, note in averager.average.notes.items()}
    return found


def training_metrics(state: TrainingState) -> dict[str, float]:
    """Return the number of images in the batches of the epoch, and loss and error (%) over them.

    Raises:
        Diverged: if a loss is not finite, or if the weights are not after the epoch's last update,
            which no loss has seen yet.
    """
    losses, wrong = torch.stack([state.losses, state.wrong]).cpu().double()
    bad = (~losses.isfinite()).nonzero()
    step, reason = state.step, None
    if len(bad):
        step += int(bad[0]) + 1 - state.steps_per_epoch
        reason = f"the training loss became {losses[bad[0]].item()}"
    elif not all_finite(state.model):
        reason = "the weights are no longer finite"
    if reason is not None:
        rate = learning_rate(state.optimizer)
        epoch = state.step // state.steps_per_epoch
        raise Diverged({"reason": reason, "step": step, "epoch": epoch, "learning_rate": rate})
    images = int(state.sizes.sum())
    return {
        "train_images": images,
        "train_loss": (losses @ state.sizes.double()).item() / images,
        "train_error": 100 * wrong.sum().item() / images,
    }


def train_error_so_far(state: TrainingState) -> float:
    """Return the training error (%) over the epoch under way, or the one that has just ended."""
    batches = (state.step - 1) % state.steps_per_epoch + 1
    return 100 * state.wrong[:batches].sum().item() / int(state.sizes[:batches].sum())


def is_due(epoch: int, every: int) -> bool:
    """Return whether what is done every so many epochs, 0 for never, is done after `epoch`."""
    return every > 0 and epoch % every == 0


def all_finite(model: nn.Module) -> bool:
    """Return whether every parameter is, read from the device in one go."""
    return bool(torch.stack([p.isfinite().all() for p in model.parameters()]).all())


class Stopwatch:
    """Adds the time since the last look to one kind of the state's seconds."""

    def __init__(self, device: torch.device, state: TrainingState) -> None:
        self._device = device
        self._state = state
        self._looked = self._saved = time.perf_counter()

    def lap(self, kind: str) -> None:
        """Book the time since the last call as `kind`."""
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        now = time.perf_counter()
        self._state.seconds[kind] = self._state.seconds.get(kind, 0.0) + now - self._looked
        self._looked = now

    def since_saving(self) -> float:
        """Return the seconds since the last checkpoint."""
        return time.perf_counter() - self._saved

    def saved(self) -> None:
        """Book the time since the last call as saving, and count from here to the next."""
        self.lap("saving")
        self._saved = self._looked
