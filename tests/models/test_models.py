"""Shapes, initial weights, widths and seeds of all CIFAR networks."""

import math

import pytest
import torch
from torch import nn

from phaseavg.models import CNN13, densenet121, resnet34, wrn28_10

CIFAR = [CNN13, resnet34, wrn28_10, densenet121]


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def channels(model):
    return [(c.in_channels, c.out_channels) for c in convolutions(model)]


def on_meta(make, *args, **options):
    """Return a network on the meta device."""
    with torch.device("meta"):
        return make(*args, **options)


@pytest.mark.parametrize(
    ("make", "options", "size"),
    [
        (CNN13, {"width": 0.125, "in_channels": 1, "image_size": 8, "pools": 1}, 8),
        (CNN13, {"width": 0.125, "image_size": 12}, 12),
        (CNN13, {"width": 0.125, "image_size": 6, "pools": 1}, 6),
        (resnet34, {"width": 0.125, "in_channels": 2}, 33),
        (wrn28_10, {"width": 0.1, "in_channels": 2}, 33),
        (densenet121, {"width": 0.125, "in_channels": 1}, 8),
        (densenet121, {"width": 0.1, "in_channels": 2}, 33),
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
        for i, (n, m) in enumerate(channels(on_meta(make, 10)))
    ]
    assert channels(on_meta(make, 10, width=width)) == expected


@pytest.mark.parametrize("make", CIFAR)
def test_initial_convolution_weights_are_kaiming_normal_by_fan_out(make):
    torch.manual_seed(0)
    large = [c for c in convolutions(make(10)) if c.weight.numel() > 50_000]
    assert any(c.in_channels != c.out_channels for c in large)  # else fan-in would do as well
    for convolution in large:
        weight = convolution.weight.detach()
        fan_out = convolution.out_channels * weight[0, 0].numel()
        std = math.sqrt(2 / fan_out)
        assert weight.std().item() == pytest.approx(std, rel=0.015)
        assert abs(weight.mean()) < 0.02 * std
        assert weight.abs().max() > 3.5 * std  # a uniform distribution ends at 1.7


@pytest.mark.parametrize(
    ("make", "inputs", "biased"),
    [(resnet34, 512, True), (wrn28_10, 640, False), (densenet121, 1024, False)],
)
def test_initial_linear_weights_are_torch_defaults(make, inputs, biased):
    torch.manual_seed(0)
    classifier = make(100).classifier
    bound = 1 / math.sqrt(inputs)  # of a uniform distribution
    assert classifier.weight.shape == (100, inputs)
    assert 0.999 * bound < classifier.weight.abs().max() <= bound
    assert classifier.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert classifier.bias.abs().max() <= bound
    assert classifier.bias.count_nonzero() == (100 if biased else 0)


@pytest.mark.parametrize(
    ("make", "number"), [(CNN13, 9), (resnet34, 36), (wrn28_10, 25), (densenet121, 120)]
)
def test_initial_batchnorms_are_the_identity(make, number):
    norms = [m for m in make(10, width=0.25).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
    assert len(norms) == number


@pytest.mark.parametrize("make", CIFAR)
def test_initial_weights_depend_on_the_seed(make):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(make(10, width=0.05).parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    ("make", "count"), [(CNN13, 128), (resnet34, 64), (wrn28_10, 16), (densenet121, 32)]
)
def test_a_width_without_channels_is_rejected(make, count):
    with pytest.raises(ValueError, match=f"width=0.001 reduces {count} channels to 0"):
        make(10, width=0.001)
