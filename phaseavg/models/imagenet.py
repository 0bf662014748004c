"""The paper's networks for ImageNet: torchvision's, with random weights.

All map (N, 3, H, W) to (N, num_classes). Initialisation is torchvision's: convolutions
Kaiming-normal, fan-out (He et al., 2015; of a grouped convolution, all its outputs count),
BatchNorm 1 and 0, that at the end of a residual branch included.
"""

from torch import nn

# torchvision takes a second to import, and a run with another network does not need it.


def _check(name: str, in_channels: int, image_size: int) -> None:
    if in_channels != 3 or image_size < 64:
        raise ValueError(
            f"image_size={image_size}, in_channels={in_channels}: {name} takes colour images of "
            "64 pixels and more; choices for others: cnn13, resnet34, wrn28_10, densenet121"
        )


def resnet50(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return ResNet-50 (He et al., CVPR 2016); 25,557,032 parameters for 1000 classes.

    Its blocks halve in the 3×3 convolution, not in the 1×1 convolution before it as in the paper.
    The linear layer starts as torch has it.

    Raises:
        ValueError: if the images are not in colour or are under 64 pixels.
    """
    _check("resnet50", in_channels, image_size)
    from torchvision import models

    return models.resnet50(weights=None, num_classes=num_classes)


def resnext50(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return ResNeXt-50, 32×4d (Xie et al., CVPR 2017); 25,028,904 parameters for 1000 classes.

    The linear layer starts as torch has it.

    Raises:
        ValueError: if the images are not in colour or are under 64 pixels.
    """
    _check("resnext50", in_channels, image_size)
    from torchvision import models

    return models.resnext50_32x4d(weights=None, num_classes=num_classes)


def vgg16(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return VGG-16 with BatchNorm; 138,365,992 parameters for 1000 classes.

    Configuration D of Simonyan and Zisserman (ICLR 2015) with a BatchNorm after each convolution.
    The classifier drops out half of each hidden layer; linear layers start at N(0, 0.01), all
    biases at 0.

    Raises:
        ValueError: if the images are not in colour or are under 64 pixels.
    """
    _check("vgg16", in_channels, image_size)
    from torchvision import models

    return models.vgg16_bn(weights=None, num_classes=num_classes)
