"""The 13-layer VGG-like network, as in public code of the paper's author.

The paper cites Tarvainen and Valpola (2017), whose network has 1×1 convolutions at the end, leaky
ReLU, dropout, input noise and weight normalisation.
"""

from torch import Tensor, nn

from phaseavg.models.shared import kaiming_fan_out, scale_channels


class CNN13(nn.Module):
    """3×3 convolutions 128×3, pool, 256×3, pool, 512, 256, 128, global average pool, linear.

    BatchNorm and ReLU follow every convolution. Convolutions have no bias, and padding 1 except the
    convolution with 512 channels. Initialisation: Kaiming-normal, fan-out (He et al., 2015); linear
    weights N(0, 0.01²). 4,432,522 parameters for 10 classes.

    `width` multiplies all channel counts. `pools` is the number of max-pools; 1 is for images
    smaller than 12 pixels.

    Raises:
        ValueError: if `width` or `pools` is out of range, or the images are too small.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        pools: int = 2,
    ) -> None:
        super().__init__()
        if pools not in (1, 2):
            raise ValueError(f"pools={pools}; choices: 1, 2")
        if image_size >> pools < 3:
            raise ValueError(
                f"pools={pools} reduces {image_size}×{image_size} images to less than 3×3 pixels; "
                "choices: 1 for images of at least 6×6 pixels, 2 for at least 12×12"
            )
        layers: list[nn.Module] = []
        channels = in_channels

        def convolutions(*outputs: int, padding: int = 1) -> None:
            nonlocal channels
            for output in outputs:
                output = scale_channels(output, width)
                layers.append(nn.Conv2d(channels, output, 3, padding=padding, bias=False))
                layers.append(nn.BatchNorm2d(output))
                layers.append(nn.ReLU(inplace=True))
                channels = output

        convolutions(128, 128, 128)
        layers.append(nn.MaxPool2d(2))
        convolutions(256, 256, 256)
        if pools == 2:
            layers.append(nn.MaxPool2d(2))
        convolutions(512, padding=0)
        convolutions(256, 128)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        kaiming_fan_out(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, num_classes), of images (N, in_channels, H, W)."""
        return self.classifier(self.pool(self.features(images)).flatten(1))
