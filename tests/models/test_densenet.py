"""The CIFAR form of DenseNet-121 compared with torchvision's network."""

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet as TorchvisionDenseNet

from phaseavg.models import densenet121


@pytest.mark.parametrize(("growth", "size"), [(32, 8), (6, 19)])  # a thin network on odd sizes, too
@pytest.mark.parametrize("train", [False, True])
def test_densenet121_matches_torchvision_except_for_the_3x3_stem(train, growth, size):
    torch.manual_seed(0)
    oracle = TorchvisionDenseNet(growth, (6, 12, 24, 16), 2 * growth, num_classes=10)
    oracle.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(oracle.features, name, nn.Identity())
    model = densenet121(10, width=growth / 32)
    with torch.no_grad():  # with the initial 0 and 1, exchanged tensors would not show
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    # Both state dicts have the same order.
    names, tensors = oracle.state_dict().keys(), model.state_dict().values()
    oracle.load_state_dict(dict(zip(names, tensors, strict=True)))
    model, oracle = model.double().train(train), oracle.double().train(train)
    images = torch.randn(3, 3, size, size).double()
    with torch.no_grad():
        torch.testing.assert_close(model(images), oracle(images), rtol=1e-9, atol=1e-9)
    for mine, other in zip(model.buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
