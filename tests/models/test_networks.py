"""Layers, widths, initial weights and rejected arguments of the networks."""

import math
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from phaseavg.models import (
    CNN13,
    densenet121,
    resnet34,
    resnet50,
    timm_model,
    wrn28_10,
)

CIFAR = [CNN13, resnet34, wrn28_10, densenet121]


def modules(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def channels(make, **options):
    """Return the channels of each convolution of a network."""
    with torch.device("meta"):
        convolutions = modules(make(10, **options), nn.Conv2d)
    return [(c.in_channels, c.out_channels) for c in convolutions]


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
        assert convolution.bias is None
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


def test_cnn13_has_the_layers_of_the_paper():
    model = CNN13(10)
    letters = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", nn.MaxPool2d: "P"}
    layout = "".join(letters[type(layer)] for layer in model.features)
    assert layout == "CBRCBRCBR" + "P" + "CBRCBRCBR" + "P" + "CBRCBRCBR"
    widths = [3, 128, 128, 128, 256, 256, 256, 512, 256, 128]
    assert channels(CNN13) == list(pairwise(widths))
    convolutions = modules(model, nn.Conv2d)
    assert all(c.kernel_size == (3, 3) and c.stride == (1, 1) for c in convolutions)
    assert [c.padding for c in convolutions] == [(1, 1)] * 6 + [(0, 0)] + [(1, 1)] * 2
    assert all(c.bias is None for c in convolutions)
    norms = modules(model, nn.BatchNorm2d)
    assert [norm.num_features for norm in norms] == [c.out_channels for c in convolutions]
    assert model.features(torch.randn(1, 3, 32, 32)).shape == (1, 128, 6, 6)  # 32, 16, 8, then − 2


def test_pools_1_omits_only_the_second_max_pool():
    two_pools = CNN13(10, width=0.125)
    one_pool = CNN13(10, width=0.125, image_size=8, pools=1)
    expected = [str(layer) for layer in two_pools.features]
    del expected[19]  # after C B R three times, a pool, and C B R three times
    assert [str(layer) for layer in one_pool.features] == expected
    assert one_pool.features(torch.randn(2, 3, 8, 8)).shape == (2, 16, 2, 2)


def test_logits_use_the_average_over_all_pixels():
    model = CNN13(10, width=0.125).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        means = model.features(images).mean((2, 3))
        expected = means @ model.classifier.weight.T + model.classifier.bias
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("pools", [0, 3])
def test_invalid_pools_are_rejected(pools):
    with pytest.raises(ValueError, match=f"pools={pools}; choices: 1, 2"):
        CNN13(10, pools=pools)


@pytest.mark.parametrize(("pools", "size"), [(2, 11), (1, 5)])
def test_images_too_small_for_the_pools_are_rejected(pools, size):
    with pytest.raises(ValueError, match=rf"pools={pools} .*{size}×{size} .*choices"):
        CNN13(10, image_size=size, pools=pools)
    smallest = CNN13(10, width=0.125, image_size=size + 1, pools=pools)
    assert smallest(torch.randn(2, 3, size + 1, size + 1)).shape == (2, 10)


@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 224), (3, 63)])
def test_grey_or_small_images_are_rejected(in_channels, image_size):
    message = f"^image_size={image_size}, in_channels={in_channels}: resnet50 needs colour images"
    with pytest.raises(ValueError, match=message):
        resnet50(10, in_channels=in_channels, image_size=image_size)


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 8), ("convnext_atto", 32), ("vit_tiny_patch16_224", 32), ("mixer_s16_224", 48)],
)
def test_a_network_fits_the_images_and_classes_of_the_data(name: str, size: int) -> None:
    with torch.device("meta"):
        model = timm_model(name, num_classes=7, in_channels=1, image_size=size)
        assert model(torch.empty(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet81", "???"])  # the second is close to none
def test_an_unknown_name_is_rejected_with_close_names(name: str) -> None:
    message = f"name={name!r}: timm has no such model; choices: resnet18, "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        timm_model(name, num_classes=10)
