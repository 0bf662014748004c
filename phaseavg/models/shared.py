"""What the paper's CIFAR networks share: a width factor and an initialisation."""

from torch import nn


def scaled(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded.

    Raises:
        ValueError: if less than one channel is left.
    """
    if (result := round(channels * width)) < 1:
        raise ValueError(f"width={width} leaves none of {channels} channels; choose more")
    return result


def kaiming_fan_out(model: nn.Module) -> None:
    """Draw the weights of all `nn.Conv2d` in `model` anew, N(0, 2 / fan-out), in `modules()` order.

    Fan-out is the kernel's size times the output channels (He et al., ICCV 2015, Section 2.2).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
