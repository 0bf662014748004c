"""Networks for ImageNet: architecture and rejected images."""

import pytest
import torch
from torch import nn

from phaseavg.models import resnet50, resnext50, vgg16


def modules(make, kind):
    with torch.device("meta"):
        return [module for module in make(10).modules() if isinstance(module, kind)]


def test_resnext50_has_32_groups_of_4_or_more_channels():
    grouped = [c for c in modules(resnext50, nn.Conv2d) if c.groups > 1]
    plain = [c for c in modules(resnet50, nn.Conv2d) if c.kernel_size == (3, 3)]
    assert [(c.groups, c.in_channels // c.groups) for c in grouped] == (
        [(32, 4)] * 3 + [(32, 8)] * 4 + [(32, 16)] * 6 + [(32, 32)] * 3
    )
    assert all(c.kernel_size == (3, 3) for c in grouped)
    assert [2 * c.in_channels for c in plain] == [c.in_channels for c in grouped]


def test_vgg16_is_configuration_d_with_batchnorm_and_dropout():
    letters = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.MaxPool2d: "P"}
    layers = modules(vgg16, (*letters, nn.Dropout))
    layout = "".join(letters[type(layer)] for layer in layers[:-2])
    assert layout == "P".join(["CB" * n for n in (2, 2, 3, 3, 3)]) + "P"
    assert [dropout.p for dropout in layers[-2:]] == [0.5, 0.5]


@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 224), (3, 63)])
def test_grey_or_small_images_are_rejected(in_channels, image_size):
    message = f"^image_size={image_size}, in_channels={in_channels}: resnet50 needs colour images"
    with pytest.raises(ValueError, match=message):
        resnet50(10, in_channels=in_channels, image_size=image_size)
