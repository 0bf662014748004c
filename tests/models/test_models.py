"""Shapes and widths of the CIFAR networks, and the initial weights of all networks."""

import math

import pytest
import torch
from torch import nn

from phaseavg.models import CNN13, densenet121, resnet34, resnet50, resnext50, vgg16, wrn28_10

CIFAR = [CNN13, resnet34, wrn28_10, densenet121]


def modules(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def channels(make, **options):
    """Return the channels of each convolution of a network."""
    with torch.device("meta"):
        convolutions = modules(make(10, **options), nn.Conv2d)
    return [(c.in_channels, c.out_channels) for c in convolutions]


@pytest.mark.parametrize(
    ("make", "options", "size"),
    [
        (CNN13, {"width": 0.125, "image_size": 12}, 12),
        (CNN13, {"width": 0.125, "in_channels": 1, "image_size": 6, "pools": 1}, 6),
        (resnet34, {"width": 0.125, "in_channels": 2}, 33),
        (wrn28_10, {"width": 0.1, "in_channels": 2}, 33),
        (densenet121, {"width": 0.125, "in_channels": 1}, 8),
    ],
)
def test_networks_map_images_to_logits(make, options, size):
    images = torch.randn(2, options.get("in_channels", 3), size, size)
    logits = make(7, **options)(images)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("width", [0.25, 2.0])
@pytest.mark.parametrize("make", CIFAR)
def test_width_scales_every_channel_count(make, width):
    expected = [
        (n if i == 0 else round(n * width), round(m * width))
        for i, (n, m) in enumerate(channels(make))
    ]
    assert channels(make, width=width) == expected


def test_a_width_without_channels_is_rejected():
    with pytest.raises(ValueError, match=r"width=0.001 reduces 128 channels to 0"):
        CNN13(10, width=0.001)


@pytest.mark.parametrize(
    ("make", "linear_std", "biased"),
    [
        (CNN13, 0.01, False),
        (resnet34, None, True),
        (wrn28_10, None, False),
        (densenet121, None, False),
        (resnet50, None, True),
        (resnext50, None, True),
        (vgg16, 0.01, False),
    ],
)
def test_initial_weights(make, linear_std, biased):
    """Convolutions are Kaiming-normal by fan-out, BatchNorm layers the identity.

    Linear weights are normal, or torch's: uniform within 1 / √inputs.
    """
    model = make(100)
    large = [c for c in modules(model, nn.Conv2d) if c.weight.numel() > 50_000]
    assert any(c.in_channels != c.out_channels for c in large)  # else fan-in would do as well
    for convolution in large:
        weight = convolution.weight.detach()
        std = math.sqrt(2 / (convolution.out_channels * weight[0, 0].numel()))
        assert weight.std().item() == pytest.approx(std, rel=0.015)
        assert abs(weight.mean()) < 0.02 * std
        assert weight.abs().max() > 3.5 * std  # a uniform distribution ends at 1.7
    for convolution in modules(model, nn.Conv2d):
        assert convolution.bias is None or convolution.bias.count_nonzero() == 0
    for norm in modules(model, nn.BatchNorm2d):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
    for linear in modules(model, nn.Linear):
        bound = 1 / math.sqrt(linear.in_features)
        std = linear_std or bound / math.sqrt(3)
        assert linear.weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(linear.weight.mean()) < 0.03 * std
        assert linear_std or 0.999 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() <= bound
        assert linear.bias.count_nonzero() == (len(linear.bias) if biased else 0)
