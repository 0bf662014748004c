"""The running average: Algorithm 1 and the paper's equations, and what could spoil them."""

import copy
import io

import numpy as np
import pytest
import torch
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from phaseavg.averaging import Exponential, Uniform, WeightAverage, unwrapped


class Linear:
    """α_t = 2t / (T (T + 1)): weights of one's own, by nothing but the one method."""

    def step(self, t, epochs):
        return 2 / (t + 1)


class Plain:
    """θ̄ ← γ θ̄ + (1 − γ) θ_t from a copy of the first weights: not debiased."""

    def __init__(self, gamma):
        self.gamma = gamma

    def step(self, t, epochs):
        return 1.0 if t == 1 else 1 - self.gamma


def opened(model, weights, epochs):
    average = WeightAverage(model, weights)
    average.start(model, epochs)
    return average


def averaged(weights, thetas):
    """Return the average of a whole window of weight vectors."""
    model = small_network()
    average = opened(model, weights, len(thetas))
    for theta in thetas:
        overwrite(model, theta)
        average.observe(model)
    return flat(average.module)


@pytest.mark.parametrize("epochs", [1, 2, 30, 80, 100])
@pytest.mark.parametrize("gamma0", [0.99, 0.95, 0.9, 0.8, 0.5])
def test_the_average_is_algorithm_1_at_every_epoch_and_the_closed_form_at_the_end(gamma0, epochs):
    model = small_network()
    thetas = random_trajectory(model, epochs)
    average = opened(model, Exponential(gamma0), epochs)
    for theta, expected in zip(thetas, algorithm_1(thetas, gamma0, epochs), strict=True):
        overwrite(model, theta)
        average.observe(model)
        assert relative_error(flat(average.module), expected) <= 1e-12
    assert relative_error(flat(average.module), alphas(gamma0, epochs) @ thetas) <= 1e-12


def test_a_copy_started_moving_average_is_something_else():
    # With θ_1 = 1 and all later weights 0 the average is the first epoch's weight.
    thetas = np.zeros((80, 26))
    thetas[0] = 1
    model = small_network()
    copy_started = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    for theta in thetas:
        overwrite(model, theta)
        copy_started.update_parameters(model)
    np.testing.assert_allclose(flat(copy_started.module), 0.452, rtol=1e-3)
    np.testing.assert_allclose(averaged(Exponential(0.99), thetas), 0.00818, rtol=1e-3)


def test_uniform_weights_give_the_plain_mean():
    thetas = random_trajectory(small_network(), 7)
    assert relative_error(averaged(Uniform(), thetas), thetas.mean(0)) <= 1e-14


def test_weights_of_ones_own_need_only_the_one_method():
    thetas = random_trajectory(small_network(), 9)
    expected = [2 * t / (9 * 10) for t in range(1, 10)] @ thetas
    assert relative_error(averaged(Linear(), thetas), expected) <= 1e-14


def regression():
    """Return 16 inputs of three numbers and targets of two, in float64."""
    torch.manual_seed(1)
    return torch.randn(16, 3).double(), torch.randn(16, 2).double()


def descend(model, optimizer):
    """Make one update of full-batch gradient descent."""
    inputs, targets = regression()
    optimizer.zero_grad()
    nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()


@pytest.mark.parametrize("epochs", [1, 5, 80])
def test_equation_6_holds_on_a_recorded_trajectory(epochs):
    torch.manual_seed(0)
    model, rate, gamma0 = small_network(), 0.1, 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    average = opened(model, Exponential(gamma0), epochs)
    thetas = [flat(model)]  # θ_0 and the epoch ends; an epoch has three updates
    for _ in range(epochs):
        for _ in range(3):
            descend(model, optimizer)
        average.observe(model)
        thetas.append(flat(model))
    gamma = gamma0 ** (80 / epochs)
    expected = thetas[0].copy()
    for tau in range(1, epochs + 1):
        delta = (thetas[tau] - thetas[tau - 1]) / rate
        expected += (1 - gamma ** (epochs - tau + 1)) / (1 - gamma**epochs) * rate * delta
    assert relative_error(flat(average.module), expected) <= 1e-12
    moved = relative_error(flat(average.module), thetas[0])
    assert moved > 1e-2  # else the identity would be that of the start


def sgd(rates):
    """Return the weights after updates at the given rates, without momentum."""
    torch.manual_seed(0)
    model = small_network()
    for rate in rates:
        descend(model, torch.optim.SGD(model.parameters(), lr=rate))
    return flat(model)


def test_injecting_the_plain_average_after_every_update_scales_the_rate_by_1_minus_gamma():
    # Equations 7 and 8: θ̄ is started at θ_0.
    updates, rate, gamma = 20, 0.2, 0.7
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    average = opened(model, Plain(gamma), updates + 1)
    average.observe(model)
    for _ in range(updates):
        descend(model, optimizer)
        average.observe(model)
        average.copy_to(model)
    assert relative_error(flat(model), sgd([rate * (1 - gamma)] * updates)) <= 1e-12


def test_injecting_the_debiased_average_after_every_update_does_not():
    # θ̄_t = θ̄_{t−1} − w_t λ g: the rate is scaled by w_t = (1 − γ) / (1 − γ^t), more at first.
    updates, rate, gamma = 20, 0.2, 0.7
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    average = opened(model, Exponential(gamma ** (updates / 80)), updates)
    for _ in range(updates):
        descend(model, optimizer)
        average.observe(model)
        average.copy_to(model)
    scaled = [rate * (1 - gamma) / (1 - gamma**t) for t in range(1, updates + 1)]
    assert relative_error(flat(model), sgd(scaled)) <= 1e-12
    assert relative_error(flat(model), sgd([rate * (1 - gamma)] * updates)) > 1e-2


def test_training_on_in_place_does_not_change_the_average():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    average = opened(model, Exponential(), 3)
    for _ in range(3):  # the first weights are copied by another path than the later ones
        average.observe(model)
        before = copy.deepcopy(average.module.state_dict())
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(100)
        after = average.module.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_average_does_not_change_the_model():
    model = small_network()
    theta = flat(model)
    average = opened(model, Exponential(), 2)
    average.observe(model)
    overwrite(model, 2 * theta)
    average.observe(model)
    np.testing.assert_array_equal(flat(model), 2 * theta)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize("done", range(6))
def test_a_state_restored_in_mid_window_continues_exactly(done):
    model = small_network()
    thetas = random_trajectory(model, 5)
    unbroken = opened(model, Exponential(), 5)
    saved = io.BytesIO()
    restored = WeightAverage(small_network(), Exponential())  # it was never told of the window
    for t, theta in enumerate([*thetas, None]):
        if t == done:
            torch.save(unbroken.state_dict(), saved)
            saved.seek(0)
            restored.load_state_dict(torch.load(saved))
        if theta is None:
            continue
        overwrite(model, theta)
        unbroken.observe(model)
        if t >= done:
            restored.observe(model)
    np.testing.assert_array_equal(flat(restored.module), flat(unbroken.module))
    with pytest.raises(RuntimeError, match="window of 5 epochs"):
        restored.observe(model)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,  # compiles nothing before it is called
        lambda model: nn.DataParallel(torch.compile(model)),
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
)
def test_wrapped_models_are_read_and_written_as_the_raw_one(wrap):
    model = small_network()
    wrapper = wrap(model)
    assert wrapper is not model
    assert unwrapped(wrapper) is model
    average = opened(wrapper, Exponential(), 2)
    assert average.module.state_dict().keys() == model.state_dict().keys()
    thetas = random_trajectory(model, 2)
    for theta in thetas:
        overwrite(model, theta)
        average.observe(wrapper)
    average.copy_to(wrapper)
    assert relative_error(flat(model), alphas(0.9, 2) @ thetas) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_averaged_in_float32(dtype):
    # Neighbours in bfloat16, so that nothing between 1 and 1 + 2⁻⁷ can be written in it.
    values = [1.0, 1.0, 1 + 2**-7]
    model = small_network().to(dtype)
    average = opened(model, Uniform(), 3)
    for value in values:
        overwrite(model, np.full(26, value))
        average.observe(model)
    assert {p.dtype for p in average.module.parameters()} == {torch.float32}
    np.testing.assert_allclose(flat(average.module), 1 + 2**-7 / 3, rtol=1e-6)
    average.copy_to(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    nearest = torch.tensor(1 + 2**-7 / 3).to(dtype).item()
    np.testing.assert_array_equal(flat(model), nearest)


def test_the_average_lives_on_the_device_it_is_told_and_on_the_cpu_by_default():
    model = small_network()
    for average, device in (
        (WeightAverage(model, Uniform()), "cpu"),
        (WeightAverage(model, Uniform(), device="meta"), "meta"),
    ):
        tensors = [*average.parameters(), *average.buffers()]
        assert {tensor.device.type for tensor in tensors} == {device}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_memory_does_not_grow_by_the_average():
    model = nn.Linear(1024, 1024).cuda()
    before = torch.cuda.memory_allocated()
    average = opened(model, Exponential(), 3)
    assert torch.cuda.memory_allocated() == before
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        average.observe(model)
    assert {p.device.type for p in average.parameters()} == {"cpu"}
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() - before < 4096  # of 4 MB of weights: a scalar or two


def test_buffers_are_not_averaged_but_the_latest():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = opened(model, Exponential(), 2)
    for value in (1.0, 5.0):
        model[1].running_mean.fill_(value)
        model[1].num_batches_tracked.fill_(int(value))
        average.observe(model)
        assert average.module[1].running_mean.tolist() == [value, value]
        assert average.module[1].num_batches_tracked == value


def test_replacing_the_weights_keeps_buffers_and_the_parameters_themselves():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    average = opened(model, Exponential(), 1)
    average.observe(model)
    theta, places = flat(model), [p.data_ptr() for p in model.parameters()]
    overwrite(model, theta + 1)
    model[1].running_mean.fill_(7)
    average.copy_to(model)
    np.testing.assert_array_equal(flat(model), theta)
    assert model[1].running_mean.tolist() == [7, 7]
    assert [p.data_ptr() for p in model.parameters()] == places  # which an optimizer holds
    assert all(p.requires_grad for p in model.parameters())


def test_the_average_and_the_weights_it_replaced_stay_apart():
    model = small_network()
    average = opened(model, Exponential(), 1)
    average.observe(model)
    average.copy_to(model)
    theta = flat(average.module)
    overwrite(model, theta + 1)
    np.testing.assert_array_equal(flat(average.module), theta)


@pytest.mark.parametrize("weights", [Exponential(0.7), Uniform(), Linear()])
def test_the_coefficients_are_what_the_average_is_made_with(weights):
    model = small_network()
    thetas = random_trajectory(model, 6)
    average = opened(model, weights, 6)
    assert average.coefficients() == []
    for t, theta in enumerate(thetas, start=1):
        overwrite(model, theta)
        average.observe(model)
        coefficients = average.coefficients()
        assert len(coefficients) == t
        assert sum(coefficients) == pytest.approx(1, rel=1e-14)
        assert relative_error(coefficients @ thetas[:t], flat(average.module)) <= 1e-14
    assert average.notes == {}


def test_the_storage_is_that_of_one_network_whatever_the_window():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # 24 parameters, 9 numbers more
    average = WeightAverage(model, Uniform())
    size, home = average.storage(80)
    assert home == "cpu"
    assert 4 * (24 + 8) + 8 <= size <= 4 * (24 + 8) + 8 + 16  # and the two counters
    assert average.storage(1) == average.storage(80)
    assert average.files() == []


def test_a_new_window_forgets_the_one_before():
    model = small_network()
    average = opened(model, Exponential(), 4)
    first, *second = random_trajectory(model, 3)
    overwrite(model, first)
    average.observe(model)
    average.start(model, 2)
    for theta in second:
        overwrite(model, theta)
        average.observe(model)
    assert relative_error(flat(average.module), alphas(0.9, 2) @ second) <= 1e-12


def test_observing_outside_an_open_window_is_refused():
    model = small_network()
    average = WeightAverage(model, Exponential())
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        average.observe(model)
    average.start(model, 1)
    average.observe(model)
    theta = flat(average.module)
    overwrite(model, theta + 1)
    with pytest.raises(RuntimeError, match="window of 1 epochs is full"):
        average.observe(model)
    np.testing.assert_array_equal(flat(average.module), theta)


def test_replacing_before_anything_was_observed_is_refused():
    model = small_network()
    average = WeightAverage(model, Exponential())
    for _ in range(2):  # in a second window as in the first
        average.start(model, 1)
        with pytest.raises(RuntimeError, match=r"observe\(\)"):
            average.copy_to(model)
        average.observe(model)


@pytest.mark.parametrize("epochs", [0, -3])
def test_a_window_without_epochs_is_refused(epochs):
    model = small_network()
    with pytest.raises(ValueError, match=f"epochs={epochs} must be positive"):
        WeightAverage(model, Exponential()).start(model, epochs)
