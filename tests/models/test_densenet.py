"""The CIFAR form of DenseNet-121 against torchvision's network, its count by hand, refusals."""

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet as TorchvisionDenseNet

from phaseavg.models import densenet121


@pytest.mark.parametrize(("growth", "size"), [(32, 8), (6, 19)])
@pytest.mark.parametrize("train", [False, True])
def test_densenet121_is_torchvisions_with_a_3x3_convolution_for_stem(train, growth, size):
    torch.manual_seed(0)
    oracle = TorchvisionDenseNet(growth, (6, 12, 24, 16), 2 * growth, num_classes=10)
    oracle.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    for name in ("norm0", "relu0", "pool0"):
        setattr(oracle.features, name, nn.Identity())
    model = densenet121(10, image_size=size, width=growth / 32)
    with torch.no_grad():  # nothing at its initial 0 or 1, which would hide a mistake
        for tensor in model.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    ours, theirs = list(model.state_dict().values()), oracle.state_dict()
    oracle.load_state_dict(dict(zip(theirs, ours, strict=True)))  # both list them in order
    model, oracle = model.double().train(train), oracle.double().train(train)
    images = torch.randn(3, 3, size, size).double()
    with torch.no_grad():
        torch.testing.assert_close(model(images), oracle(images), rtol=1e-9, atol=1e-9)
    for mine, other in zip(model.buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("in_channels", "classes", "width", "growth"), [(3, 100, 1.0, 32), (1, 10, 0.25, 8)]
)
def test_the_parameter_count_is_the_sum_over_121_layers(in_channels, classes, width, growth):
    channels = 2 * growth
    expected = 9 * in_channels * channels
    for block, layers in enumerate((6, 12, 24, 16)):
        if block > 0:
            expected += 2 * channels + channels * (channels // 2)
            channels //= 2
        for _ in range(layers):
            expected += 2 * channels + channels * 4 * growth
            expected += 2 * 4 * growth + 9 * 4 * growth * growth
            channels += growth
    expected += 2 * channels + channels * classes + classes
    with torch.device("meta"):
        model = densenet121(classes, in_channels, width=width)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("size", [7, 1])
def test_images_that_the_transitions_shrink_to_nothing_are_refused(size):
    message = f"image_size={size} is nothing after 3 halvings; choices: 8 and more"
    with pytest.raises(ValueError, match=message):
        densenet121(10, image_size=size)
