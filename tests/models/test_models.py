"""The networks: shapes and counts, initial weights, and torchvision as a second opinion."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet34 as torchvision_resnet34

from phaseavg.models import CNN13, resnet34

# Of CNN13: inputs, outputs and padding of every convolution, in order.
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


def convolutions(model):
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "classes", "expected"),
    [
        (CNN13, 10, 4_432_522),
        (CNN13, 100, 4_432_522 + 90 * 129),
        (resnet34, 10, 21_282_122),
        (resnet34, 100, 21_328_292),
    ],
)
def test_parameter_counts_are_the_papers(make, classes, expected):
    assert count(make(classes)) == expected


@pytest.mark.parametrize(
    ("make", "options", "size"),
    [
        (CNN13, {}, 32),
        (CNN13, {"width": 0.125, "in_channels": 1}, 32),
        (CNN13, {"width": 0.125, "in_channels": 1, "image_size": 8, "pools": 1}, 8),
        (CNN13, {"width": 0.125, "image_size": 12}, 12),
        (CNN13, {"width": 0.125, "image_size": 6, "pools": 1}, 6),
        (resnet34, {}, 32),
        (resnet34, {"width": 0.125, "in_channels": 1, "image_size": 8}, 8),
        (resnet34, {"width": 0.125, "in_channels": 2}, 33),
    ],
)
def test_images_become_logits(make, options, size):
    images = torch.randn(2, options.get("in_channels", 3), size, size)
    logits = make(7, **options)(images)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_cnn13_is_laid_out_as_in_the_paper():
    model = CNN13(10)
    letters = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", nn.MaxPool2d: "P"}
    layout = "".join(letters[type(layer)] for layer in model.features)
    assert layout == "CBRCBRCBR" + "P" + "CBRCBRCBR" + "P" + "CBRCBRCBR"
    found = convolutions(model)
    assert [(c.in_channels, c.out_channels, c.padding[0]) for c in found] == CONVOLUTIONS
    assert all(c.kernel_size == (3, 3) and c.stride == (1, 1) for c in found)
    assert all(c.padding[0] == c.padding[1] and c.bias is None for c in found)
    norms = [layer for layer in model.features if isinstance(layer, nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [c.out_channels for c in found]
    assert model.features(torch.randn(1, 3, 32, 32)).shape == (1, 128, 6, 6)  # 32, 16, 8, then − 2


def test_one_pool_leaves_out_the_second_max_pool_alone():
    two = CNN13(10, width=0.125)
    one = CNN13(10, width=0.125, image_size=8, pools=1)
    kept = [str(layer) for layer in two.features]
    del kept[19]  # after C B R three times, a pool, and C B R three times
    assert [str(layer) for layer in one.features] == kept
    assert one.features(torch.randn(2, 3, 8, 8)).shape == (2, 16, 2, 2)


def test_every_image_is_classified_by_the_average_over_its_pixels():
    model = CNN13(10, width=0.125).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        means = model.features(images).mean((2, 3))
        expected = means @ model.classifier.weight.T + model.classifier.bias
        torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("width", [1.0, 0.25])
@pytest.mark.parametrize("make", [CNN13, resnet34])
def test_width_scales_every_channel_count(make, width):
    expected = [
        (n if i == 0 else round(n * width), round(m * width))
        for i, (n, m) in enumerate(
            (c.in_channels, c.out_channels) for c in convolutions(make(10, width=1.0))
        )
    ]
    found = [(c.in_channels, c.out_channels) for c in convolutions(make(10, width=width))]
    assert found == expected


@pytest.mark.parametrize("make", [CNN13, resnet34])
def test_convolutions_start_kaiming_normal_by_fan_out(make):
    torch.manual_seed(0)
    large = [c for c in convolutions(make(10)) if c.weight.numel() > 50_000]
    assert any(c.in_channels != c.out_channels for c in large)  # else fan-in would do as well
    for convolution in large:
        weight = convolution.weight.detach()
        fan_out = convolution.out_channels * weight[0, 0].numel()
        deviation = math.sqrt(2 / fan_out)
        assert weight.std().item() == pytest.approx(deviation, rel=0.015)
        assert abs(weight.mean()) < 0.02 * deviation
        assert weight.abs().max() > 3.5 * deviation  # a uniform distribution ends at 1.7


def test_cnn13s_linear_layer_starts_small_and_without_bias():
    torch.manual_seed(0)
    classifier = CNN13(100).classifier
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert abs(classifier.weight.mean()) < 3e-4
    assert classifier.bias.count_nonzero() == 0


@pytest.mark.parametrize("make", [CNN13, resnet34])
def test_batchnorms_start_as_the_identity(make):
    norms = [m for m in make(10, width=0.25).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)
    assert len(norms) == {CNN13: 9, resnet34: 36}[make]


@pytest.mark.parametrize("make", [CNN13, resnet34])
def test_a_seed_gives_the_same_weights_and_another_seed_others(make):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(make(10, width=0.05).parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("train", [False, True])
def test_resnet34_is_torchvisions_with_a_3x3_stem_and_no_max_pool(train):
    torch.manual_seed(0)
    oracle = torchvision_resnet34(num_classes=10)
    oracle.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    oracle.maxpool = nn.Identity()
    model = resnet34(10)
    with torch.no_grad():  # nothing at its initial 0 or 1, which would hide a mistake
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


@pytest.mark.parametrize("make", [CNN13, resnet34])
def test_a_few_steps_of_sgd_lower_the_loss(make):
    torch.manual_seed(0)
    model = make(4, width=0.125)
    images, labels = torch.randn(16, 3, 16, 16), torch.arange(16) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("make", "channels"), [(CNN13, 128), (resnet34, 64)])
def test_a_width_that_leaves_no_channels_is_refused(make, channels):
    with pytest.raises(ValueError, match=f"width=0.001 leaves none of {channels} channels"):
        make(10, width=0.001)


@pytest.mark.parametrize("pools", [0, 3])
def test_other_numbers_of_pools_are_refused(pools):
    with pytest.raises(ValueError, match=f"pools={pools}; choices: 1, 2"):
        CNN13(10, pools=pools)


@pytest.mark.parametrize(("pools", "size"), [(2, 11), (2, 8), (1, 5)])
def test_images_too_small_for_the_pools_are_refused(pools, size):
    with pytest.raises(ValueError, match=rf"pools={pools} .*{size}×{size} .*choices"):
        CNN13(10, image_size=size, pools=pools)
