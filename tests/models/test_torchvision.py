"""The CIFAR forms of ResNet-34 and DenseNet-121 compared with torchvision's networks."""

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet
from torchvision.models import resnet34 as torchvision_resnet34

from phaseavg.models import densenet121, resnet34


def assert_equal_with_the_same_weights(model, oracle, train, size):
    """Compare logits and running statistics of networks whose state dicts have the same order."""
    with torch.no_grad():  # initial values 0 and 1 would hide exchanged tensors
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    ours, theirs = model.state_dict().values(), oracle.state_dict()
    oracle.load_state_dict(dict(zip(theirs, ours, strict=True)))
    model, oracle = model.double().train(train), oracle.double().train(train)
    images = torch.randn(3, 3, size, size).double()
    with torch.no_grad():
        torch.testing.assert_close(model(images), oracle(images), rtol=1e-9, atol=1e-9)
    for mine, other in zip(model.buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("train", [False, True])
def test_resnet34_matches_torchvision_except_for_stem_and_max_pool(train):
    oracle = torchvision_resnet34(num_classes=10)
    oracle.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    oracle.maxpool = nn.Identity()
    assert_equal_with_the_same_weights(resnet34(10), oracle, train, size=16)


@pytest.mark.parametrize(("growth", "size"), [(32, 8), (6, 19)])  # a thin network on odd sizes, too
@pytest.mark.parametrize("train", [False, True])
def test_densenet121_matches_torchvision_except_for_the_3x3_stem(train, growth, size):
    oracle = DenseNet(growth, (6, 12, 24, 16), 2 * growth, num_classes=10)
    oracle.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(oracle.features, name, nn.Identity())
    assert_equal_with_the_same_weights(densenet121(10, width=growth / 32), oracle, train, size)
