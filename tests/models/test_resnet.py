"""The CIFAR form of ResNet-34 compared with torchvision's network."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet34 as torchvision_resnet34

from phaseavg.models import resnet34


@pytest.mark.parametrize("train", [False, True])
def test_resnet34_matches_torchvision_except_for_stem_and_max_pool(train):
    torch.manual_seed(0)
    oracle = torchvision_resnet34(num_classes=10)
    oracle.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    oracle.maxpool = nn.Identity()
    model = resnet34(10)
    with torch.no_grad():  # initial values 0 and 1 would hide errors
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    ours, theirs = list(model.state_dict().values()), oracle.state_dict()
    oracle.load_state_dict(dict(zip(theirs, ours, strict=True)))  # both list them in order
    model, oracle = model.double().train(train), oracle.double().train(train)
    images = torch.randn(3, 3, 16, 16).double()
    with torch.no_grad():
        torch.testing.assert_close(model(images), oracle(images), rtol=1e-9, atol=1e-9)
    for mine, other in zip(model.buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)
