"""Networks for ImageNet: architecture, initial weights and rejected images."""

import math
import re

import pytest
import torch
from torch import nn

from phaseavg.models import resnet50, resnext50, vgg16

NETWORKS = [resnet50, resnext50, vgg16]


def modules(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def test_resnext50_has_32_groups_of_4_or_more_channels():
    with torch.device("meta"):
        grouped = [c for c in modules(resnext50(10), nn.Conv2d) if c.groups > 1]
        plain = [c for c in modules(resnet50(10), nn.Conv2d) if c.kernel_size == (3, 3)]
    assert [(c.groups, c.in_channels // c.groups) for c in grouped] == (
        [(32, 4)] * 3 + [(32, 8)] * 4 + [(32, 16)] * 6 + [(32, 32)] * 3
    )
    assert all(c.kernel_size == (3, 3) for c in grouped)
    assert [2 * c.in_channels for c in plain] == [c.in_channels for c in grouped]


def test_vgg16_is_configuration_d_with_batchnorm_and_dropout():
    with torch.device("meta"):
        model = vgg16(10)
    letters = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", nn.MaxPool2d: "P"}
    layout = "".join(letters[type(layer)] for layer in model.features)
    assert layout == "P".join(["CBR" * n for n in (2, 2, 3, 3, 3)]) + "P"
    assert [dropout.p for dropout in modules(model, nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize("make", NETWORKS)
def test_initial_weights(make):
    torch.manual_seed(0)
    model = make(10)
    for convolution in modules(model, nn.Conv2d):
        weight = convolution.weight
        if weight.numel() > 50_000:
            std = math.sqrt(2 / (convolution.out_channels * weight[0, 0].numel()))
            assert weight.std().item() == pytest.approx(std, rel=0.015)
            assert weight.abs().max() > 3.5 * std  # a uniform distribution ends at 1.7
        assert convolution.bias is None or convolution.bias.count_nonzero() == 0
    for norm in modules(model, nn.BatchNorm2d):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
    for linear in modules(model, nn.Linear):
        std = 0.01 if make is vgg16 else 1 / math.sqrt(3 * linear.in_features)
        assert linear.weight.std().item() == pytest.approx(std, rel=0.01)
        assert (linear.bias.count_nonzero() == 0) == (make is vgg16)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 224), (3, 63)])
def test_grey_or_small_images_are_rejected(make, in_channels, image_size):
    message = (
        f"image_size={image_size}, in_channels={in_channels}: {make.__name__} needs colour images "
        "of at least 64 pixels; choices for other images: cnn13, resnet34, wrn28_10, densenet121"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(10, in_channels=in_channels, image_size=image_size)
