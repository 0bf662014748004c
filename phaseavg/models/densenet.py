"""DenseNet-BC (Huang et al., CVPR 2017) in its CIFAR form: 3×3 stem, no max-pool."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phaseavg.models.shared import kaiming_fan_out, scale_channels


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1×1 convolution to 4 × growth, BatchNorm, ReLU, 3×3 convolution to growth.

    The output concatenates the input and the new channels.
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, in_channels + growth, H, W)."""
        out = self.conv1(self.relu(self.bn1(x)))
        out = self.conv2(self.relu(self.bn2(out)))
        return torch.cat((x, out), 1)


class DenseNet(nn.Module):
    """A 3×3 stem, dense blocks with transitions between them, BatchNorm, ReLU.

    As in the authors' CIFAR code, the stem is a single convolution to 2 × growth channels, without
    BatchNorm and ReLU. A transition (BatchNorm, ReLU, 1×1 convolution, 2×2 average pool) halves
    channels, height and width. Initialisation as in the authors' code: convolutions Kaiming-normal,
    fan-out (He et al., 2015); BatchNorm weight 1, bias 0; linear weights as in torch, bias 0. No
    dropout. `layers` is the number of layers in each block. `width` multiplies the growth of 32 and
    therefore all channel counts.
    """

    def __init__(
        self, layers: Sequence[int], num_classes: int, in_channels: int = 3, width: float = 1.0
    ) -> None:
        super().__init__()
        growth = scale_channels(32, width)
        channels = 2 * growth
        features: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
        for block, count in enumerate(layers):
            if block > 0:
                features += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
                features += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(count):
                features.append(DenseLayer(channels, growth))
                channels += growth
        features += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        kaiming_fan_out(self)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


def densenet121(num_classes: int, in_channels: int = 3, width: float = 1.0) -> DenseNet:
    """Return DenseNet-BC-121: 6, 12, 24, 16 layers; 7,048,548 parameters for 100 classes."""
    return DenseNet((6, 12, 24, 16), num_classes, in_channels, width)
