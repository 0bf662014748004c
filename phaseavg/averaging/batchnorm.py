"""Recomputation of BatchNorm statistics, for weights that were not trained with them."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from phaseavg.averaging.average import unwrapped


class _Statistics:
    """Sums of one layer's batch statistics, weighted by batch size.

    With a momentum of 1 the layer's running statistics are those of its last batch: a forward hook
    reads them, so that the sums cost no pass over the activations.
    """

    def __init__(self, layer: _NormBase) -> None:
        self.layer, self.momentum = layer, layer.momentum
        self.running: list[Tensor] = [layer.running_mean, layer.running_var]  # type: ignore[list-item]
        self.before = [buffer.clone() for buffer in layer.buffers()]
        # The number of samples, then the sums of the means and of the unbiased variances.
        both = torch.cat(self.running)
        dtype = torch.float32 if both.device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = both.new_zeros(1 + len(both), dtype=dtype)
        layer.reset_running_stats()  # 0 times infinity would stay
        layer.momentum = 1.0
        layer.train()
        self.hook = layer.register_forward_hook(self._add)

    def _add(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        size = len(output)
        self.sums[0] += size
        self.sums[1:] += size * torch.cat(self.running)

    def close(self, sums: Tensor) -> None:
        """Set the statistics to the weighted means, or back if the sums are empty."""
        self.hook.remove()
        self.layer.momentum = self.momentum
        if sums[0] == 0:
            for buffer, value in zip(self.layer.buffers(), self.before, strict=True):
                buffer.copy_(value)
        else:
            for buffer, mean in zip(self.running, (sums[1:] / sums[0]).chunk(2), strict=True):
                buffer.copy_(mean)


def _forward_images(device: torch.device, model: nn.Module, batch: Any) -> None:
    images = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise TypeError(
            f"batches: a {type(batch).__name__} is neither a tensor nor a sequence that starts "
            "with one; pass forward=lambda model, batch: model(...)"
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

    The statistics become the mean over the batches of each batch's mean and unbiased variance,
    weighted by batch size and summed in float64. Unlike with `torch.optim.swa_utils.update_bn`, a
    short last batch counts for what it is, only BatchNorm layers are put in train mode (dropout
    stays off), and the global random state, the layers' momenta and every module's mode are
    afterwards as they were. InstanceNorm layers that track statistics are treated alike. If
    a process group is initialised, the sums are over all of its processes, which have to call this
    together.

    Args:
        model: the network; unchanged if it has no such layer (`batches` is then not read). Layers
            in eval mode inside a model in train mode are frozen and keep their statistics.
        batches: what `forward` takes; by default tensors (N, …), or sequences that start with one,
            such as (images, labels).
        forward: runs the model, without its wrappers, on a batch, for example
            `lambda model, batch: model(**batch)`; it moves the batch to the model's device.

    Raises:
        TypeError: if a batch is of another type and no `forward` is given.
        ValueError: if there are no batches, or only empty ones.

    If anything is raised, the statistics stay as they were.
    """
    model = unwrapped(model)
    modes = {module: module.training for module in model.modules()}
    layers = [
        module
        for module in modes
        if isinstance(module, _NormBase)
        and module.running_mean is not None
        and (module.training or not model.training)
    ]
    if not layers:
        return
    model.eval()
    statistics = [_Statistics(layer) for layer in layers]
    device = next((p.device for p in model.parameters()), statistics[0].sums.device)
    forward = forward or partial(_forward_images, device)
    totals = torch.zeros(sum(len(s.sums) for s in statistics))
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for batch in batches:
                forward(model, batch)
        sums = torch.cat([s.sums.to(device) for s in statistics])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        totals = sums
    finally:
        parts = torch.split(totals, [len(s.sums) for s in statistics])
        for own, part in zip(statistics, parts, strict=True):
            own.close(part)
        for module, mode in modes.items():
            module.training = mode
    if not totals.any():
        raise ValueError("batches: at least one is needed to recompute BatchNorm statistics")
