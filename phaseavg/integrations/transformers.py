"""Hugging Face Trainer callback for phase-wise averaging."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from accelerate.state import AcceleratorState, DistributedType
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from phaseavg.averaging import BEMA, RNA, Phasewise, Weights, recompute_batchnorm
from phaseavg.optim import Lookahead

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)

FILE = "phasewise.pt"
"""File name of the averager's state in a checkpoint folder."""

ID = "phasewise"
"""Key of the training's id in the Trainer's state; the averager's state has the same id."""


class PhasewiseCallback(TrainerCallback):
    """Replace the weights with the average of the epoch-end weights at the end of every phase.

    The average replaces the weights after the last update of the phase, so evaluation and
    checkpoints at this step use the average. One pass over the training data recomputes BatchNorm
    statistics, if any. Checkpoints contain the running average in `phasewise.pt`, and
    `resume_from_checkpoint` continues it.

    Example: `Trainer(..., callbacks=[PhasewiseCallback([2, 1])])`.

    Args:
        epochs: T_p, the number of epochs in each phase; None ends a phase where the scheduler
            lowers the learning rate.
        weights: the coefficients of a phase's epochs; by default the paper's, with γ0 = 0.9.
        device: the device that stores the average.
        every_steps: number of updates between averaged weights; None averages after every epoch.
            `epochs` counts these intervals.
        forward: runs the model on a training batch; by default `model(**batch)`.
        trainable_only: average only parameters that are trainable when training starts, such as
            those of adapters.

    Raises:
        ValueError: when training starts, if it is longer than the phases, the scheduler or the data
            does not define phases, the checkpoint has no average, the network is sharded, or the
            optimizer is a Lookahead.
        TypeError: when training starts, if the BatchNorm pass needs `forward`.
    """

    def __init__(
        self,
        epochs: Sequence[int] | None = None,
        weights: Weights | RNA | BEMA | None = None,
        device: torch.device | str = "cpu",
        every_steps: int | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        trainable_only: bool = False,
    ) -> None:
        self.epochs, self.weights, self.device = epochs, weights, device
        self.trainable_only = trainable_only
        self.every_steps, self.forward = every_steps, forward or _forward_keywords
        self.steps = 0
        self.averager: Phasewise | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: Optimizer,
        lr_scheduler: LRScheduler,
        train_dataloader: Iterable[Any],
        **others: Any,
    ) -> None:
        """Create the averager and restore the checkpoint's state, if any."""
        if (kind := AcceleratorState().distributed_type) in SHARDED:
            raise ValueError(
                f"distributed_type={kind.value}: PhasewiseCallback needs the whole network in "
                "every process"
            )
        if isinstance(getattr(optimizer, "optimizer", optimizer), Lookahead):  # accelerate wraps it
            raise ValueError(
                "optimizer=Lookahead: PhasewiseCallback would average its fast weights; use a "
                "plain loop"
            )
        length = _length(train_dataloader)
        if not (self.every_steps or length):
            raise ValueError(
                "every_steps=None: the training data has no length; pass every_steps=…"
            )
        steps = self.every_steps or math.ceil(length / args.gradient_accumulation_steps)
        has_statistics = any(name.endswith("running_mean") for name, _ in model.named_buffers())
        if self.every_steps and args.dataloader_persistent_workers and has_statistics:
            raise ValueError(
                "dataloader_persistent_workers=True: a BatchNorm pass inside an epoch would end "
                "the epoch; use every_steps=None, or no persistent workers"
            )
        saved = self._saved_state(args, state, steps)
        lengths = self.epochs or (saved and saved["settings"]["lengths"])
        if not lengths:
            by_step = Phasewise.from_scheduler(model, lr_scheduler, state.max_steps).lengths
            if any(length % steps for length in by_step):
                raise ValueError(
                    f"epochs=None: the scheduler's phases of {by_step} updates must be multiples "
                    f"of {steps}; pass epochs=[…]"
                )
            lengths = [length // steps for length in by_step]
        if state.max_steps > sum(lengths) * steps:
            raise ValueError(
                f"epochs={list(lengths)}: the training has {state.max_steps} updates, but the "
                f"phases have {sum(lengths) * steps}"
            )
        self.steps = steps
        self.averager = Phasewise(
            model, lengths, self.weights, self.device, trainable_only=self.trainable_only
        )
        if saved:
            self.averager.load_state_dict(saved)
        state.stateful_callbacks[ID] = uuid4().hex
        if has_statistics and length:
            # Try the BatchNorm pass on one batch, so that it does not fail at a phase end.
            buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
            try:
                recompute_batchnorm(model, islice(train_dataloader, 1), self.forward)
            except TypeError as error:
                if self.forward is not _forward_keywords:
                    raise
                raise TypeError(
                    f"forward=None: model(**batch) fails ({error}); pass "
                    "forward=lambda model, batch: …"
                ) from error
            for buffer, value in buffers:
                buffer.copy_(value)

    def _saved_state(
        self, args: TrainingArguments, state: TrainerState, steps: int
    ) -> dict[str, Any]:
        """Return the averager's state in the checkpoint to resume; empty for a new training.

        The Trainer does not pass the argument of `train(resume_from_checkpoint=…)` to callbacks.
        """
        if not state.global_step:
            return {}
        in_output = Path(args.output_dir, f"checkpoint-{state.global_step}")
        for folder in (Path(str(args.resume_from_checkpoint)), in_output):
            if (folder / FILE).is_file():
                saved = dict(torch.load(folder / FILE, weights_only=True))
                same = saved.get(ID) == state.stateful_callbacks.get(ID)
                if same and saved["ended"] == state.global_step // steps:
                    return saved
        raise ValueError(
            f"{in_output / FILE}: does not exist, is another training's, or has not averaged "
            f"{state.global_step // steps} epochs; keep the batch size and every_steps, and if the "
            "checkpoint is in another folder, set it in "
            "TrainingArguments(resume_from_checkpoint=…) as well"
        )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        train_dataloader: Iterable[Any],
        **others: Any,
    ) -> None:
        """Update the average at an epoch end; replace the weights at a phase end."""
        if state.global_step % self.steps == 0 and self.averager.epoch_end(model):
            if hasattr(train_dataloader, "set_epoch"):  # after a resume it has the first epoch's
                train_dataloader.set_epoch(math.ceil(state.epoch) - 1)
            interval = self.steps * args.gradient_accumulation_steps
            endless = _length(train_dataloader) is None
            batches = islice(train_dataloader, interval if endless else None)
            recompute_batchnorm(model, batches, self.forward)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Save the averager's state in the checkpoint's folder."""
        if args.should_save and not state.is_hyper_param_search:  # trials are not resumed
            path = Path(args.output_dir, f"checkpoint-{state.global_step}", FILE)
            torch.save({**self.averager.state_dict(), ID: state.stateful_callbacks[ID]}, path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Warn if training ended before the last phase did."""
        try:
            self.averager.finish()
        except RuntimeError as error:
            warnings.warn(str(error), stacklevel=1)


def _length(batches: Any) -> int | None:
    """Return the number of batches; None if it is unknown, as of a stream."""
    try:
        return len(batches)
    except TypeError:
        return None


def _forward_keywords(model: nn.Module, batch: Any) -> None:
    model(**batch)
