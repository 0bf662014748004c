"""Phase-wise averaging in Lightning: `Trainer(callbacks=[PhasewiseAveraging([80, 40, 40])])`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from phaseavg.averaging import RNA, Phasewise, Weights, recompute_batchnorm


class PhasewiseAveraging(Callback):
    """At the end of every phase the average of its epoch-end weights replaces the weights.

    That happens after the last training batch of the phase, so the epoch's validation and
    checkpoints are those of the average. BatchNorm statistics are recomputed by one pass over the
    training data. A checkpoint has the average so far, and a resumed training continues with it.

    Args:
        epochs: T_p, the number of epochs of every phase; None to end a phase wherever the module's
            first scheduler, which steps once per epoch, lowers the learning rate.
        weights: how the epochs of a phase are weighted; by default the paper's, with γ0 = 0.9.
        device: where the average is stored.
        forward: runs the module on a batch of training data; by default on its first element.

    Raises:
        ValueError: when training starts, if `max_epochs` is unlimited or beyond the phases, or the
            phases do not follow from the scheduler.
    """

    def __init__(
        self,
        epochs: Sequence[int] | None = None,
        weights: Weights | RNA | None = None,
        device: torch.device | str = "cpu",
        forward: Callable[[LightningModule, Any], Any] | None = None,
    ) -> None:
        self.epochs, self.weights, self.device, self.forward = epochs, weights, device, forward
        self.averager: Phasewise | None = None
        self._state: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the averager, or continue that of the checkpoint."""
        options = {"weights": self.weights, "device": self.device}
        last = trainer.max_epochs if trainer.max_epochs is not None else -1
        epochs = self.epochs or (self._state and self._state["settings"]["lengths"])
        if epochs:
            averager = Phasewise(pl_module, epochs, **options)
        else:
            averager = Phasewise.from_scheduler(pl_module, _scheduler(trainer), last, **options)
        if not 0 <= last <= sum(averager.lengths):
            raise ValueError(
                f"max_epochs={trainer.max_epochs}: the phases {averager.lengths} have "
                f"{sum(averager.lengths)} epochs"
            )
        if self._state:
            averager.load_state_dict(self._state)
        elif trainer.current_epoch:
            raise ValueError(
                f"ckpt_path={trainer.ckpt_path}: it was saved after {trainer.current_epoch} epochs "
                "without PhasewiseAveraging"
            )
        self.averager = averager

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last batch of an epoch, average; at the end of a phase, replace the weights."""
        if trainer.is_last_batch and self.averager.epoch_end(pl_module):
            batches = (
                pl_module._apply_batch_transfer_handler(batch) for batch in trainer.train_dataloader
            )
            recompute_batchnorm(pl_module, batches, self.forward)

    def state_dict(self) -> dict[str, Any]:
        """Return the averager's state; Lightning saves it in its checkpoints."""
        return self.averager.state_dict() if self.averager else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until training starts."""
        self._state = state_dict


def _scheduler(trainer: Trainer) -> Any:
    """Return the scheduler that phases follow from.

    Raises:
        ValueError: if there is none, or it steps otherwise than once per epoch.
    """
    configs = trainer.lr_scheduler_configs
    if not configs or (configs[0].interval, configs[0].frequency) != ("epoch", 1):
        raise ValueError(
            "epochs=None: needs a scheduler that steps once per epoch; give epochs=[…]"
        )
    return configs[0].scheduler
