"""CIFAR networks compared with torchvision's, and WRN-28-10 with a functional one in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import DenseNet
from torchvision.models import resnet34 as torchvision_resnet34

from phaseavg.models import densenet121, resnet34, wrn28_10


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


def reference(images, state, train):
    """Return the logits and the running statistics after one forward pass of WRN-28.

    Written from the paper and the authors' functional PyTorch code; uses up the tensors of `state`.
    """
    statistics = {}

    def activate(x, name):
        mean, variance = state.pop(f"{name}.running_mean"), state.pop(f"{name}.running_var")
        if train:
            values = x.transpose(0, 1).flatten(1)
            statistics[f"{name}.running_mean"] = 0.9 * mean + 0.1 * values.mean(1)
            statistics[f"{name}.running_var"] = 0.9 * variance + 0.1 * values.var(1)  # unbiased
            mean, variance = values.mean(1), values.var(1, correction=0)
        scale = state.pop(f"{name}.weight") / (variance + 1e-5).sqrt()
        shift = state.pop(f"{name}.bias") - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    def convolve(x, name, **options):
        return functional.conv2d(x, state.pop(f"{name}.weight"), **options)

    x = convolve(images, "conv1", padding=1)
    for block in range(12):
        name, stride = f"groups.{block}", 2 if block in (4, 8) else 1
        first = activate(x, f"{name}.bn1")
        y = convolve(first, f"{name}.conv1", stride=stride, padding=1)
        y = convolve(activate(y, f"{name}.bn2"), f"{name}.conv2", padding=1)
        if block in (0, 4, 8):
            x = convolve(first, f"{name}.shortcut", stride=stride)
        x = x + y
    means = activate(x, "bn").mean((2, 3))
    logits = means @ state.pop("classifier.weight").T + state.pop("classifier.bias")
    return logits, statistics


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("train", [False, True])
def test_wrn28_10_matches_the_reference(train, size):
    torch.manual_seed(0)
    model = wrn28_10(10, width=0.25).double().train(train)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:  # initial values 0 and 1 would hide errors
            tensor.uniform_(0.5, 1.5)
        elif "conv2" in name:
            tensor.mul_(0.5)  # the sum of 12 blocks else outgrows the last ones
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(3, 3, size, size).double()
    with torch.no_grad():
        expected, statistics = reference(images, state, train)
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    assert all(name.endswith("num_batches_tracked") for name in state)  # all others were used
    assert len(statistics) == (2 * 25 if train else 0)
    buffers = dict(model.named_buffers())
    for name, statistic in statistics.items():
        torch.testing.assert_close(buffers[name], statistic, rtol=1e-9, atol=1e-9)
