"""Recomputation of BatchNorm statistics, for weights that were not trained with them."""

from collections.abc import Callable, Iterable, Sequence
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

    def __init__(self, layer: _NormBase, mean: Tensor, variance: Tensor) -> None:
        self.layer, self.running = layer, (mean, variance)
        self.before = [buffer.clone() for buffer in layer.buffers(recurse=False)]
        self.momentum = layer.momentum
        exact = torch.float32 if mean.device.type == "mps" else torch.float64
        # The number of samples, then the sums of the means and of the unbiased variances.
        self.sums = torch.zeros(1 + 2 * mean.numel(), dtype=exact, device=mean.device)
        layer.reset_running_stats()  # 0 times infinity would stay
        layer.momentum = 1.0
        self._hook = layer.register_forward_hook(self._add)

    def _add(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        size = len(output)
        self.sums[0] += size
        self.sums[1:] += size * torch.cat(self.running)

    def detach(self) -> None:
        """Let the layer be as it was, but for its statistics."""
        self._hook.remove()
        self.layer.momentum = self.momentum

    def restore(self) -> None:
        """Put back the statistics from before the pass."""
        for buffer, value in zip(self.layer.buffers(recurse=False), self.before, strict=True):
            buffer.copy_(value)

    def apply(self, sums: Tensor) -> None:
        """Make the weighted means the layer's statistics; one that was not called keeps its own."""
        if sums[0] == 0:
            self.restore()
            return
        for buffer, mean in zip(self.running, (sums[1:] / sums[0]).chunk(2), strict=True):
            buffer.copy_(mean)


def _images_to_model(device: torch.device) -> Callable[[nn.Module, Any], None]:
    """Return the default `forward`: the model on a batch's images, moved to its device."""

    def forward(model: nn.Module, batch: Any) -> None:
        images = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
        if not isinstance(images, Tensor):
            raise TypeError(
                f"batches: a {type(batch).__name__} is neither a tensor nor a sequence that starts "
                "with one; pass forward=lambda model, batch: model(...)"
            )
        if len(images):
            model(images.to(device))

    return forward


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
    layers = [
        _Statistics(m, m.running_mean, m.running_var)
        for m in model.modules()
        if isinstance(m, _NormBase)
        and m.running_mean is not None
        and m.running_var is not None
        and (m.training or not model.training)
    ]
    if not layers:
        return
    device = next((p.device for p in model.parameters()), layers[0].sums.device)
    forward = forward or _images_to_model(device)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for statistics in layers:
            statistics.layer.train()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for batch in batches:
                forward(model, batch)
        sums = torch.cat([statistics.sums.to(device) for statistics in layers])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        if not sums.any():
            raise ValueError("batches: at least one is needed to recompute BatchNorm statistics")
    except BaseException:
        for statistics in layers:
            statistics.restore()
        raise
    finally:
        for statistics in layers:
            statistics.detach()
        for module, mode in modes.items():
            module.training = mode
    for statistics, own in zip(
        layers, torch.split(sums, [len(s.sums) for s in layers]), strict=True
    ):
        statistics.apply(own)
