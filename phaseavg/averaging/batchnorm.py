"""BatchNorm statistics for weights that were not trained with them."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from phaseavg.averaging.average import unwrapped


def _tracking_layers(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def recompute_batchnorm(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Recompute the running statistics of all BatchNorm layers by forward passes (Section 2.1.1).

    The statistics become the mean over the batches of each batch's mean and unbiased variance,
    weighted by batch size. Unlike `torch.optim.swa_utils.update_bn`, a short last batch counts for
    what it is, only BatchNorm layers are put in train mode (dropout stays off), and the global
    random state, the layers' momenta and every module's mode are afterwards as they were.

    Args:
        model: the network; unchanged if it has no such layer (`batches` is then not read).
        batches: images (N, …), or sequences whose first item they are, such as (images, labels).

    Raises:
        ValueError: if there are no batches.
    """
    model = unwrapped(model)
    layers = _tracking_layers(model)
    if not layers:
        return
    device = next(model.parameters()).device
    training = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            raise ValueError("batches: at least one is needed to recompute BatchNorm statistics")
        seen = 0
        try:
            model.eval()
            for layer in layers:
                layer.train()
                layer.reset_running_stats()
            for batch in chain([first], batches):
                images = batch if isinstance(batch, Tensor) else batch[0]
                seen += len(images)
                for layer in layers:
                    layer.momentum = len(images) / seen  # running mean weighted by batch size
                model(images.to(device))
        finally:
            for module, mode in training.items():
                module.training = mode
            for layer, momentum in momenta.items():
                layer.momentum = momentum
