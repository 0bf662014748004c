"""The paper's networks for ImageNet: torchvision's, with random weights.

All map (N, 3, H, W) to (N, num_classes). Initialisation is torchvision's: convolutions
Kaiming-normal, fan-out (He et al., 2015; of a grouped convolution, all its outputs count),
BatchNorm 1 and 0, that at the end of a residual branch included.
"""

from torch import nn


def _network(
    name: str, source: str, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    if in_channels != 3 or image_size < 64:
        raise ValueError(
            f"image_size={image_size}, in_channels={in_channels}: {name} takes colour images of "
            "64 pixels and more; choices for others: cnn13, resnet34, wrn28_10, densenet121"
        )
    from torchvision import models  # takes a second, and a run with another network needs none

    return getattr(models, source)(weights=None, num_classes=num_classes)


def resnet50(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return ResNet-50 (He et al., CVPR 2016); 25,557,032 parameters for 1000 classes.

    Its blocks halve in the 3×3 convolution, not in the 1×1 convolution before it as in the paper.
    The linear layer starts as torch has it.
    """
    return _network("resnet50", "resnet50", num_classes, in_channels, image_size)


def resnext50(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return ResNeXt-50, 32×4d (Xie et al., CVPR 2017); 25,028,904 parameters for 1000 classes.

    The linear layer starts as torch has it.
    """
    return _network("resnext50", "resnext50_32x4d", num_classes, in_channels, image_size)


def vgg16(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return VGG-16 with BatchNorm; 138,365,992 parameters for 1000 classes.

    Configuration D of Simonyan and Zisserman (ICLR 2015) with a BatchNorm after each convolution.
    The classifier drops out half of each hidden layer; linear layers start at N(0, 0.01), all
    biases at 0.
    """
    return _network("vgg16", "vgg16_bn", num_classes, in_channels, image_size)
