"""The paper's 13-layer network: layers and rejected image sizes."""

import pytest
import torch
from torch import nn

from phaseavg.models import CNN13

# Inputs, outputs and padding of every convolution, in order.
CONVOLUTIONS = [
    (3, 128, 1),
    (128, 128, 1),
    (128, 128, 1),
    (128, 256, 1),
    (256, 256, 1),
    (256, 256, 1),
    (256, 512, 0),
    (512, 256, 1),
    (256, 128, 1),
]


def test_cnn13_has_the_layers_of_the_paper():
    model = CNN13(10)
    letters = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", nn.MaxPool2d: "P"}
    layout = "".join(letters[type(layer)] for layer in model.features)
    assert layout == "CBRCBRCBR" + "P" + "CBRCBRCBR" + "P" + "CBRCBRCBR"
    convolutions = [layer for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.padding[0]) for c in convolutions] == CONVOLUTIONS
    assert all(c.kernel_size == (3, 3) and c.stride == (1, 1) for c in convolutions)
    assert all(c.padding[0] == c.padding[1] and c.bias is None for c in convolutions)
    norms = [layer for layer in model.features if isinstance(layer, nn.BatchNorm2d)]
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
