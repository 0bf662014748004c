"""The least time that a training step can take on a GPU, kernel by kernel.

Each operation of forward pass, backward pass and update is taken for a kernel of its own. It takes
as long as its arithmetic at the rate of a large matrix product, or as reading each of its inputs
and writing each of its outputs once at the speed of a large copy, whichever is longer. That is what
eager kernels can do at best; what is fused reads and writes less.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

OF_SGD = 20  # bytes for each weight: it, gradient and momentum read, it and momentum written


class Kernels(TorchDispatchMode):
    """Adds up the least seconds of all operations.

    Args:
        rate: floating-point operations in a second.
        bandwidth: bytes in a second, those read and those written.
    """

    def __init__(self, rate: float, bandwidth: float) -> None:
        super().__init__()
        self._rate, self._bandwidth = rate, bandwidth
        self.seconds = 0.0
        self.kernels = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        results = function(*arguments, **(options or {}))
        if function.is_view or function.overloadpacket is torch.ops.aten.detach:
            return results
        tensors = [
            leaf for leaf in tree_leaves([arguments, options, results]) if torch.is_tensor(leaf)
        ]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        count = flop_registry.get(function.overloadpacket)
        flops = count(*arguments, **(options or {}), out_val=results) if count else 0
        self.seconds += max(flops / self._rate, moved / self._bandwidth)
        self.kernels += 1
        return results


def least_seconds(
    model: nn.Module, shape: tuple[int, ...], rate: float, bandwidth: float
) -> tuple[float, int]:
    """Return the least seconds of a training step in bfloat16, and its number of kernels.

    Args:
        model: a network on the device `meta`, on which nothing is computed.
        shape: of a batch of images, (B, C, H, W).
        rate: floating-point operations in a second, in bfloat16.
        bandwidth: bytes in a second, those read and those written.
    """
    model = model.bfloat16().train()
    model.zero_grad()  # else there would be something to add to
    images = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    labels = torch.empty(shape[0], dtype=torch.int64, device="meta")
    with Kernels(rate, bandwidth) as kernels:
        cross_entropy(model(images).float(), labels).backward()
    weights = sum(parameter.numel() for parameter in model.parameters())
    return kernels.seconds + OF_SGD * weights / bandwidth, kernels.kernels + 1
