"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016), as in the authors' code."""

from torch import Tensor, nn

from phaseavg.models.shared import kaiming_fan_out, scale_channels


class PreactivationBlock(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution, twice, with a shortcut connection.

    The shortcut is the identity. If the shape changes, it is a 1×1 convolution without BatchNorm,
    applied after the first BatchNorm and ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        activated = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """A 3×3 stem, three groups of pre-activation blocks, BatchNorm, ReLU.

    Groups 2 and 3 downsample. Initialisation as in the authors' Lua code: convolutions
    Kaiming-normal, fan-out (He et al., 2015); BatchNorm weight 1, bias 0; linear weights as in
    torch, bias 0. No dropout.

    Args:
        blocks: number of blocks in each group; the depth is 6 × blocks + 4.
        widening: multiplier of the groups' 16, 32, 64 channels, excluding the stem.
        num_classes: number of outputs.
        in_channels: channels of the images.
        width: multiplier of all channel counts, including the stem.
    """

    def __init__(
        self,
        blocks: int,
        widening: int,
        num_classes: int,
        in_channels: int = 3,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels = scale_channels(16, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        groups = []
        for group, base in enumerate((16, 32, 64)):
            for block in range(blocks):
                stride = 2 if group > 0 and block == 0 else 1
                output = scale_channels(base * widening, width)
                groups.append(PreactivationBlock(channels, output, stride))
                channels = output
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        kaiming_fan_out(self)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        out = self.relu(self.bn(self.groups(self.conv1(images))))
        return self.classifier(self.pool(out).flatten(1))


def wrn28_10(num_classes: int, in_channels: int = 3, width: float = 1.0) -> WideResNet:
    """Return WRN-28-10 (4 blocks per group; 160, 320, 640 channels), for images of any size.

    36,536,884 parameters for 100 classes.
    """
    return WideResNet(4, 10, num_classes, in_channels, width)
