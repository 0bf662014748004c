"""Lightning callback for phase-wise averaging."""

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden

from phaseavg.averaging import BEMA, RNA, Phasewise, Weights, recompute_batchnorm
from phaseavg.optim import Lookahead

SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class PhasewiseAveraging(Callback):
    """Replace the weights with the average of the epoch-end weights at the end of every phase.

    The average replaces the weights after the last training batch of the phase, so validation and
    checkpoints of this epoch use the average. One pass over the training data recomputes BatchNorm
    statistics. Checkpoints contain the running average, and a resumed training continues it.

    Example: `Trainer(callbacks=[PhasewiseAveraging([80, 40, 40])])`.

    Args:
        epochs: T_p, the number of epochs in each phase. None ends a phase where the module's first
            scheduler lowers the learning rate; this scheduler must step once per epoch.
        weights: the coefficients of a phase's epochs; by default the paper's, with γ0 = 0.9.
        device: the device that stores the average.
        forward: runs the module on a training batch; by default on the batch's first element.
        trainable_only: average only parameters that are trainable when training starts, such as
            those of adapters.

    Raises:
        ValueError: when training starts, if `max_epochs` is unlimited or exceeds the phases, the
            scheduler does not define phases, the network is sharded, or `forward` is missing; or if
            the optimizer is a Lookahead.
        TypeError: at the first batch, if it needs `forward`.
    """

    def __init__(
        self,
        epochs: Sequence[int] | None = None,
        weights: Weights | RNA | BEMA | None = None,
        device: torch.device | str = "cpu",
        forward: Callable[[LightningModule, Any], Any] | None = None,
        trainable_only: bool = False,
    ) -> None:
        self.epochs, self.weights, self.device, self.forward = epochs, weights, device, forward
        self.trainable_only = trainable_only
        self.averager: Phasewise | None = None
        self._state: dict[str, Any] = {}
        self._tried = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier checkpoint; Lightning then restores the one to resume, if any."""
        self._state, self._tried = {}, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the averager and restore the state of the checkpoint, or of an earlier `fit`."""
        if isinstance(trainer.strategy, SHARDED):
            raise ValueError(
                f"strategy={type(trainer.strategy).__name__}: PhasewiseAveraging needs the whole "
                "network in every process"
            )
        if any(isinstance(optimizer, Lookahead) for optimizer in trainer.optimizers):
            raise ValueError(
                "optimizer=Lookahead: PhasewiseAveraging would average its fast weights; use a "
                "plain loop"
            )
        if trainer.current_epoch and self.averager:
            self._state = self._state or self.averager.state_dict()
        has_statistics = any(name.endswith("running_mean") for name, _ in pl_module.named_buffers())
        if has_statistics and not (self.forward or is_overridden("forward", pl_module)):
            raise ValueError(
                "forward=None: the module has no forward for the BatchNorm pass; pass "
                "forward=lambda module, batch: …"
            )
        if trainer.current_epoch and not self._state:
            raise ValueError(
                f"ckpt_path={trainer.ckpt_path}: the checkpoint after {trainer.current_epoch} "
                "epochs has no state of PhasewiseAveraging; restart the training"
            )
        options = {
            "weights": self.weights,
            "device": self.device,
            "trainable_only": self.trainable_only,
        }
        max_epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
        epochs = self.epochs or (self._state and self._state["settings"]["lengths"])
        if epochs:
            averager = Phasewise(pl_module, epochs, **options)
        else:
            scheduler = _epoch_scheduler(trainer)
            averager = Phasewise.from_scheduler(pl_module, scheduler, max_epochs, **options)
        if not 0 <= max_epochs <= sum(averager.lengths):
            raise ValueError(
                f"max_epochs={trainer.max_epochs}: must be 0 to {sum(averager.lengths)}, the sum "
                f"of the phases {averager.lengths}"
            )
        if self._state:
            averager.load_state_dict(self._state)
        self.averager = averager

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Try the BatchNorm pass on the first batch, so that it does not fail at a phase end."""
        if batch is not None and not self._tried:  # a `dataloader_iter` shows no first batch
            self._tried = True
            buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
            with trainer.precision_plugin.forward_context():
                recompute_batchnorm(pl_module, [batch], self.forward)
            for buffer, value in buffers:
                buffer.copy_(value)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an epoch's last batch."""
        if trainer.is_last_batch:
            self._epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the average after an epoch that ended before its last batch, unless it is cut."""
        cut = trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step
        if self.averager.ended <= trainer.current_epoch and not cut:
            self._epoch_end(trainer, pl_module)

    def _epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update the average; replace the weights at a phase end."""
        if self.averager.epoch_end(pl_module):
            precision, number = trainer.precision_plugin, trainer.num_training_batches
            # One loader, or a collection of several; they may be endless.
            loader = CombinedLoader(trainer.train_dataloader, "max_size_cycle")
            batches = (
                trainer.strategy.batch_to_device(
                    pl_module._on_before_batch_transfer(precision.convert_input(batch))
                )
                for batch, _, _ in islice(loader, number if number < math.inf else None)
            )
            with precision.forward_context():
                recompute_batchnorm(pl_module, batches, self.forward)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if training ended before the last phase did."""
        try:
            self.averager.finish()
        except RuntimeError as error:
            warnings.warn(str(error), stacklevel=1)

    def state_dict(self) -> dict[str, Any]:
        """Return the averager's state for Lightning's checkpoints."""
        return self.averager.state_dict() if self.averager else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store a checkpoint's state until training starts."""
        self._state = state_dict


def _epoch_scheduler(trainer: Trainer) -> Any:
    """Return the first learning-rate scheduler.

    Raises:
        ValueError: if there is no scheduler, or it does not step once per epoch.
    """
    configs = trainer.lr_scheduler_configs
    if not configs or (configs[0].interval, configs[0].frequency) != ("epoch", 1):
        raise ValueError(
            "epochs=None: needs a scheduler that steps once per epoch; pass epochs=[…]"
        )
    return configs[0].scheduler
