"""WRN-28-10 compared with a functional float64 implementation."""

import pytest
import torch
from torch.nn import functional

from phaseavg.models import wrn28_10


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
