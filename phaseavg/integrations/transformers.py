"""Phase-wise averaging in Hugging Face's Trainer: `callbacks=[PhasewiseCallback([2, 1])]`."""

import math
from collections.abc import Callable, Iterable, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from phaseavg.averaging import RNA, Phasewise, Weights, recompute_batchnorm

FILE = "phasewise.pt"
"""The averager's state, in each checkpoint's folder."""


class PhasewiseCallback(TrainerCallback):
    """At the end of every phase the average of its epoch-end weights replaces the weights.

    That happens right after the phase's last update, so what is evaluated and saved then is the
    average. BatchNorm statistics, if there are any, are recomputed by one pass over the training
    data. A checkpoint has the average so far in a file of its own, and `resume_from_checkpoint`
    continues with it.

    Args:
        epochs: T_p, the number of epochs of every phase; None to end a phase wherever the scheduler
            lowers the learning rate.
        weights: how the epochs of a phase are weighted; by default the paper's, with γ0 = 0.9.
        device: where the average is stored.
        every_steps: average after every so many updates instead of after every epoch; `epochs` then
            counts these.
        forward: runs the model on a batch of training data; by default with it as keywords.

    Raises:
        ValueError: when training starts, if it is longer than the phases, these do not follow from
            the scheduler, or the checkpoint has no average.
    """

    def __init__(
        self,
        epochs: Sequence[int] | None = None,
        weights: Weights | RNA | None = None,
        device: torch.device | str = "cpu",
        every_steps: int | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self.epochs, self.weights, self.device = epochs, weights, device
        self.every_steps, self.forward = every_steps, forward or _with_keywords
        self.steps = 0
        self.averager: Phasewise | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        lr_scheduler: LRScheduler,
        train_dataloader: Sized,
        **others: Any,
    ) -> None:
        """Make the averager, or continue that of the checkpoint."""
        batches = len(train_dataloader) if self.every_steps is None else 0
        steps = self.every_steps or math.ceil(batches / args.gradient_accumulation_steps)
        saved = self._saved(args, state)
        lengths = self.epochs or (saved and saved["settings"]["lengths"])
        if not lengths:
            by_step = Phasewise.from_scheduler(model, lr_scheduler, state.max_steps).lengths
            if any(length % steps for length in by_step):
                raise ValueError(
                    f"epochs=None: the scheduler has phases of {by_step} updates, not multiples of "
                    f"{steps}; give epochs=[…]"
                )
            lengths = [length // steps for length in by_step]
        if state.max_steps > sum(lengths) * steps:
            raise ValueError(
                f"epochs={list(lengths)}: the training has {state.max_steps} updates, the phases "
                f"{sum(lengths) * steps}"
            )
        self.steps = steps
        self.averager = Phasewise(model, lengths, self.weights, self.device)
        if saved:
            self.averager.load_state_dict(saved)

    def _saved(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        """Return the averager's state in the checkpoint from which the training resumes, if any."""
        if not state.global_step:
            return {}
        folder = f"checkpoint-{state.global_step}"
        places = [Path(args.output_dir, folder), Path(str(args.resume_from_checkpoint))]
        for path in (place / FILE for place in places):
            if path.is_file():
                return dict(torch.load(path, weights_only=True))
        raise ValueError(f"{places[0] / FILE}: does not exist; the checkpoint has no average")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        train_dataloader: Iterable[Any],
        **others: Any,
    ) -> None:
        """At the end of an epoch average, and at the end of a phase replace the weights."""
        if state.global_step % self.steps == 0 and self.averager.epoch_end(model):
            recompute_batchnorm(model, train_dataloader, self.forward)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Save the averager's state in the checkpoint's folder."""
        if state.is_world_process_zero:
            path = Path(args.output_dir, f"checkpoint-{state.global_step}", FILE)
            torch.save(self.averager.state_dict(), path)


def _with_keywords(model: nn.Module, batch: Any) -> None:
    model(**batch)
