"""Recompute BatchNorm statistics, for example after weights were averaged."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy

from phaseavg.averaging.average import unwrapped


class _Statistics:
    """Sums of a layer's batch statistics, weighted by batch size.

    With momentum 1 the running statistics of the layer are those of the last batch. A forward hook
    adds these to the sums, so that nothing is computed twice.
    """

    def __init__(self, layer: _NormBase) -> None:
        self.layer, self.momentum = layer, layer.momentum
        self.running: list[Tensor] = [layer.running_mean, layer.running_var]  # type: ignore[list-item]
        self.original = [buffer.clone() for buffer in layer.buffers()]
        running = torch.cat(self.running)
        # MPS has no float64.
        sum_dtype = torch.float32 if running.device.type == "mps" else torch.float64
        # Number of samples, sum of means, sum of unbiased variances.
        self.sums = running.new_zeros(1 + len(running), dtype=sum_dtype)
        # With momentum 1 the old value is multiplied by 0, but 0 * inf is NaN.
        layer.reset_running_stats()
        layer.momentum = 1.0
        layer.train()
        self.hook = layer.register_forward_hook(self._add)

    def _add(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if not layer.training:  # its own `train` keeps it in eval mode: frozen
            return
        size, running = len(output), torch.cat(self.running)
        self.sums[0] += size
        # In float16 the product could overflow.
        self.sums[1:] += size * running.to(torch.promote_types(running.dtype, torch.float32))

    def finish(self, sums: Tensor) -> None:
        """Set the statistics to the weighted means, given the sums over all processes.

        If the number of samples in `sums` is 0, restore the old statistics.
        """
        self.hook.remove()
        self.layer.momentum = self.momentum
        if sums[0] == 0:
            for buffer, value in zip(self.layer.buffers(), self.original, strict=True):
                buffer.copy_(value)
        else:
            for buffer, mean in zip(self.running, (sums[1:] / sums[0]).chunk(2), strict=True):
                buffer.copy_(mean)


def _forward_images(device: torch.device, model: nn.Module, batch: Any) -> None:
    images = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise TypeError(
            f"batches: a {type(batch).__name__} is neither a tensor nor a sequence that starts "
            "with a tensor; pass forward=lambda model, batch: model(...)"
        )
    if len(images):
        model(images.to(device))


@torch.no_grad()
def recompute_batchnorm(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> None:
    """Recompute the running statistics of all BatchNorm layers by forward passes (Section 2.1.1).

    The new statistics are the averages over batches of the batch mean and the unbiased batch
    variance, weighted by batch size and summed in float64 (float32 on MPS). Unlike
    `torch.optim.swa_utils.update_bn`, this function weights batches by their size, keeps dropout
    off, and restores momenta, modes and torch's global random state. InstanceNorm layers
    that track statistics are included. If a process group is initialised, this function is
    a collective and sums over all processes. Networks that communicate in their forward pass, as
    with `fully_shard`, need the same number of batches in every process; SyncBatchNorm layers do
    not communicate here.

    Args:
        model: the model; without normalisation layers it is unchanged and `batches` is not read.
            If it is in train mode, layers in eval mode are taken as frozen and keep their
            statistics; if it is in eval mode, all layers are recomputed.
        batches: the inputs of `forward`; by default tensors (N, …), or sequences that start with a
            tensor, such as (images, labels).
        forward: runs the unwrapped model on a batch, for example
            `lambda model, batch: model(**batch)`. It must move the batch to the model's device.
            Layers that it does not reach keep their statistics, with a warning.

    Raises:
        TypeError: if a batch is neither a tensor nor such a sequence, and `forward` is None; or if
            the model has BatchNorm layers of TorchScript.
        ValueError: if there are no batches, or all batches are empty.

    After an exception the statistics are unchanged.
    """
    model = unwrapped(model)
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        if isinstance(module, torch.jit.ScriptModule) and hasattr(module, "running_mean"):
            raise TypeError(
                "model: its BatchNorm layers are TorchScript's; pass the model that was scripted, "
                "which has the same tensors"
            )
    layers = [
        module
        for module in modes
        if isinstance(module, _NormBase)
        and module.running_mean is not None
        and not is_lazy(module.running_mean)  # of a layer that was never called
        and (module.training or not model.training)
    ]
    if not layers:
        return
    model.eval()
    statistics = [_Statistics(layer) for layer in layers]
    device = next((p.device for p in model.parameters()), statistics[0].sums.device)
    forward = forward or partial(_forward_images, device)
    # After an exception the totals are still 0, and the old statistics are restored.
    totals = torch.zeros(sum(len(s.sums) for s in statistics))
    try:
        # Each process has the statistics of its own batches, whose number may differ between
        # processes; the sums over processes follow at the end.
        alone = patch.object(nn.SyncBatchNorm, "forward", _BatchNorm.forward)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), alone:
            for batch in batches:
                forward(model, batch)
        sums = torch.cat([s.sums.to(device) for s in statistics])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        totals = sums
    finally:
        parts = torch.split(totals, [len(s.sums) for s in statistics])
        for layer_statistics, part in zip(statistics, parts, strict=True):
            layer_statistics.finish(part)
        for module, mode in modes.items():
            module.training = mode
    if not totals.any():
        raise ValueError("batches: at least one non-empty batch is needed to recompute statistics")
    names = {module: name for name, module in model.named_modules()}
    kept = [names[s.layer] for s, part in zip(statistics, parts, strict=True) if not part[0]]
    if kept:
        listed = ", ".join(kept[:3]) + ", …" * (len(kept) > 3)
        warnings.warn(
            "layers that the passes do not reach in train mode keep their statistics: "
            f"{listed}; if evaluations use them, pass forward=lambda model, batch: …",
            stacklevel=3,  # the caller, below torch.no_grad
        )
