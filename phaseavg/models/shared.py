"""Channel scaling and initialisation of the paper's CIFAR networks."""

from torch import nn


def scale_channels(channels: int, width: float) -> int:
    """Return `channels` times `width`, rounded.

    Raises:
        ValueError: if the result is 0.
    """
    if (result := round(channels * width)) < 1:
        raise ValueError(f"width={width} reduces {channels} channels to 0; choose a larger width")
    return result


def kaiming_fan_out(model: nn.Module) -> None:
    """Initialise all `nn.Conv2d` weights of `model` from N(0, 2 / fan-out), in `modules()` order.

    Fan-out is the kernel size times the output channels (He et al., ICCV 2015, Section 2.2).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
