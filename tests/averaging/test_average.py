"""WeightAverage follows Algorithm 1 and the paper's equations, for all dtypes and wrappers."""

import copy

import numpy as np
import pytest
import torch
from conftest import needs_gpu
from reference import (
    algorithm_1,
    alphas,
    flat,
    overwrite,
    random_trajectory,
    relative_error,
    small_network,
)
from torch import nn

from phaseavg.averaging import Exponential, Phasewise, Uniform, WeightAverage, unwrapped


class Linear:
    """User-defined coefficients α_t = 2t / (T (T + 1)); only `step` is implemented."""

    def step(self, t, epochs):
        return 2 / (t + 1)


def vector(average):
    return np.concatenate([tensor.double().numpy().ravel() for tensor in average.tensors])


@pytest.mark.parametrize("epochs", [1, 2, 30, 80, 100])
@pytest.mark.parametrize("gamma0", [0.99, 0.95, 0.9, 0.8, 0.5])
def test_average_matches_algorithm_1_at_every_epoch_and_the_closed_form_at_the_end(gamma0, epochs):
    model = small_network()
    thetas = random_trajectory(model, epochs)
    averager = Phasewise(model, [epochs], Exponential(gamma0))
    for theta, expected in zip(thetas, algorithm_1(thetas, gamma0, epochs), strict=True):
        overwrite(model, theta)
        averager.epoch_end(model)
        assert relative_error(flat(averager.averaged(model)), expected) <= 1e-12
    assert relative_error(flat(model), alphas(gamma0, epochs) @ thetas) <= 1e-12


def regression():
    """Return float64 inputs (16, 3) and targets (16, 2)."""
    torch.manual_seed(1)
    return torch.randn(16, 3).double(), torch.randn(16, 2).double()


def descend(model, optimizer):
    """Make one update of full-batch gradient descent."""
    inputs, targets = regression()
    optimizer.zero_grad()
    nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()


def sgd(rates):
    """Return the weights after SGD updates with learning rates `rates`, without momentum."""
    torch.manual_seed(0)
    model = small_network()
    for rate in rates:
        descend(model, torch.optim.SGD(model.parameters(), lr=rate))
    return flat(model)


def test_replacing_weights_after_every_update_scales_the_learning_rate():
    # As in equations 7 and 8, but debiased: θ̄_t = θ̄_{t−1} − w_t λ g scales it by
    # w_t = (1 − γ) / (1 − γ^t).
    updates, rate, gamma = 20, 0.2, 0.7
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    average = WeightAverage(model, Exponential(gamma ** (updates / 80)))
    for t in range(1, updates + 1):
        descend(model, optimizer)
        average.update(model, t, updates)
        average.copy_to(model)
    scales = [(1 - gamma) / (1 - gamma**t) for t in range(1, updates + 1)]
    assert relative_error(flat(model), sgd([rate * scale for scale in scales])) <= 1e-12


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: nn.DataParallel(torch.compile(model)),  # compiles nothing before a call
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
)
def test_wrapped_models_are_unwrapped(wrap):
    model = small_network()
    wrapper = wrap(model)
    assert wrapper is not model
    assert unwrapped(wrapper) is model
    averager = Phasewise(wrapper, [2])
    thetas = random_trajectory(model, 2)
    for theta in thetas:
        overwrite(model, theta)
        averager.epoch_end(wrapper)
    assert relative_error(flat(model), alphas(0.9, 2) @ thetas) <= 1e-12
    assert not isinstance(averager.averaged(wrapper), type(wrapper))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_averaged_in_float32(dtype):
    # Adjacent bfloat16 numbers: no value between 1 and 1 + 2⁻⁷ is representable.
    values = [1.0, 1.0, 1 + 2**-7]
    model = small_network().to(dtype)
    averager = Phasewise(model, [3], Uniform())
    for value in values:
        overwrite(model, np.full(26, value))
        averager.epoch_end(model)
    assert {tensor.dtype for tensor in averager.average.tensors} == {torch.float32}
    np.testing.assert_allclose(vector(averager.average), 1 + 2**-7 / 3, rtol=1e-6)
    assert {p.dtype for p in model.parameters()} == {dtype}
    np.testing.assert_array_equal(flat(model), torch.tensor(1 + 2**-7 / 3).to(dtype).item())


def with_parameter(tensor):
    model = nn.Linear(1, 1, bias=False)
    model.other = nn.Parameter(tensor, requires_grad=False)
    return model


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_integers_booleans_and_8_bit_floats_are_copied(dtype):
    model = with_parameter(torch.tensor([1, 0, 1]).to(dtype))
    averager = Phasewise(model, [3], Uniform())
    for values in ([1, 0, 1], [0, 0, 1], [1, 1, 0]):
        model.other.copy_(torch.tensor(values))
        averager.epoch_end(model)
    assert model.other.dtype == dtype
    assert model.other.float().tolist() == [1, 1, 0]


def test_complex_parameters_are_averaged():
    model = with_parameter(torch.tensor([1 + 2j]))
    averager = Phasewise(model, [2], Uniform())
    for value in (1 + 2j, 3 - 4j):
        model.other.fill_(value)
        averager.epoch_end(model)
    assert model.other.tolist() == [2 - 1j]


def test_frozen_parameters_are_neither_stored_nor_changed():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 1))
    model[0].requires_grad_(requires_grad=False)
    averager = Phasewise(model, [2], Uniform(), trainable_only=True)
    assert sum(tensor.numel() for tensor in averager.average.tensors) == 101
    base = copy.deepcopy(model[0].state_dict())
    head = flat(model[1])
    averager.epoch_end(model)
    overwrite(model[1], head + 2)
    averager.epoch_end(model)
    np.testing.assert_allclose(flat(model[1]), head + 1, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(base[name], tensor) for name, tensor in model[0].state_dict().items())


@needs_gpu
def test_average_on_the_cpu_uses_no_gpu_memory():
    model = nn.Linear(1024, 1024).cuda()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    averager = Phasewise(model, [3])
    for _ in range(3):
        averager.epoch_end(model)
    assert {tensor.device.type for tensor in averager.average.tensors} == {"cpu"}
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before < 4096  # of 4 MB of weights: a scalar or two


def test_copy_to_keeps_buffers_memory_formats_and_parameter_objects():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    model = model.to(memory_format=torch.channels_last)
    model[1].bias.requires_grad_(requires_grad=False)
    averager = Phasewise(model, [1])
    places = [(p.data_ptr(), p.stride(), p.requires_grad) for p in model.parameters()]
    model[1].running_mean.fill_(7)
    assert averager.epoch_end(model)
    assert model[1].running_mean.tolist() == [7] * 4
    assert [(p.data_ptr(), p.stride(), p.requires_grad) for p in model.parameters()] == places


@pytest.mark.parametrize(
    ("weights", "alpha"),
    [
        (Exponential(0.7), alphas(0.7, 6)),
        (Uniform(), [1 / 6] * 6),
        (Linear(), [t / 21 for t in range(1, 7)]),
    ],
)
def test_coefficients_reproduce_the_average(weights, alpha):
    model = small_network()
    thetas = random_trajectory(model, 6)
    averager = Phasewise(model, [6], weights)
    assert averager.coefficients() == []
    for t, theta in enumerate(thetas, start=1):
        overwrite(model, theta)
        averager.epoch_end(model)
        coefficients = averager.coefficients()
        assert len(coefficients) == t
        assert sum(coefficients) == pytest.approx(1, rel=1e-14)
        assert relative_error(coefficients @ thetas[:t], vector(averager.average)) <= 1e-14
    assert coefficients == pytest.approx(alpha, rel=1e-13)


@pytest.mark.parametrize("other", [(3, 4), (13, 2)])
def test_another_network_is_rejected(other):
    averager = Phasewise(small_network(), [2])
    with pytest.raises(ValueError, match="model: the parameters differ in number or shape"):
        averager.epoch_end(nn.Linear(*other).double())
    assert averager.remaining == 2
