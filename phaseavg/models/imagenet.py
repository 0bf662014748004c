"""The paper's networks for ImageNet, from torchvision, randomly initialised.

Initialisation by torchvision: convolutions Kaiming-normal, fan-out over all groups (He et al.,
2015); BatchNorm weight 1, bias 0, also at the end of residual branches.
"""

from torch import nn


def _network(
    name: str, source: str, num_classes: int, in_channels: int, image_size: int
) -> nn.Module:
    if in_channels != 3 or image_size < 64:
        raise ValueError(
            f"image_size={image_size}, in_channels={in_channels}: {name} needs colour images of "
            "at least 64 pixels; choices for other images: cnn13, resnet34, wrn28_10, densenet121"
        )
    from torchvision import models  # the import takes a second; other networks do not need it

    return getattr(models, source)(weights=None, num_classes=num_classes)


def resnet50(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return ResNet-50 (He et al., CVPR 2016); 25,557,032 parameters for 1000 classes.

    Blocks downsample in the 3×3 convolution; in He et al. they downsample in the first 1×1
    convolution. The linear layer has torch's default initialisation.
    """
    return _network("resnet50", "resnet50", num_classes, in_channels, image_size)


def resnext50(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return ResNeXt-50, 32×4d (Xie et al., CVPR 2017); 25,028,904 parameters for 1000 classes.

    The linear layer has torch's default initialisation.
    """
    return _network("resnext50", "resnext50_32x4d", num_classes, in_channels, image_size)


def vgg16(num_classes: int, in_channels: int = 3, image_size: int = 224) -> nn.Module:
    """Return VGG-16 with BatchNorm; 138,365,992 parameters for 1000 classes.

    Configuration D of Simonyan and Zisserman (ICLR 2015) with BatchNorm after each convolution.
    The classifier has dropout 0.5 after each hidden layer. Linear weights are initialised with
    standard deviation 0.01, all biases with 0.
    """
    return _network("vgg16", "vgg16_bn", num_classes, in_channels, image_size)
