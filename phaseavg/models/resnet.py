"""Residual networks in their CIFAR form: 3×3 stem, no max-pool."""

from collections.abc import Sequence

from torch import Tensor, nn

from phaseavg.models.shared import kaiming_fan_out, scale_channels


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut connection (He et al., CVPR 2016, Figure 2).

    The shortcut is the identity, or a 1×1 convolution with BatchNorm if the shape changes
    (option B in the paper).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """Four stages of basic blocks with 64, 128, 256, 512 channels; stages 2 to 4 downsample.

    Initialisation: convolutions Kaiming-normal, fan-out (He et al., 2015); BatchNorm weight 1,
    bias 0; linear layer as in torch. `blocks` is the number of blocks in each stage; `width`
    multiplies all channel counts.
    """

    def __init__(
        self, blocks: Sequence[int], num_classes: int, in_channels: int = 3, width: float = 1.0
    ) -> None:
        super().__init__()
        channels = scale_channels(64, width)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        for stage, (count, base) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                output = scale_channels(base, width)
                stages.append(BasicBlock(channels, output, stride))
                channels = output
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        kaiming_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        out = self.stages(self.relu(self.bn1(self.conv1(images))))
        return self.classifier(self.pool(out).flatten(1))


def resnet34(num_classes: int, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """Return ResNet-34 (3, 4, 6, 3 blocks), for images of any size.

    21,328,292 parameters for 100 classes.
    """
    return ResNet((3, 4, 6, 3), num_classes, in_channels, width)
