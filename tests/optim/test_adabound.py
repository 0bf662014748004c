"""AdaBound compared with a reference, with the authors' package and with torch's interface."""

import adabound
import numpy as np
import optimizer_reference as reference
import pytest
import torch
from conftest import needs_gpu
from optimizer_reference import (
    largest_error,
    parameters,
    push,
    reference_trajectory,
    scalar,
    set_gradients,
    start,
    train,
    trajectory,
    vector,
)
from reference import saved_and_loaded
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from phaseavg.optim import AdaBound

DECAY = 1e-2
each_kind = pytest.mark.parametrize("capturable", [False, True])


def reference_adabound():
    return reference.AdaBound(start(), 1e-2, decay=DECAY)


# The update


@each_kind
def test_every_step_matches_the_reference(capturable):
    optimizer = AdaBound(parameters(), lr=1e-2, weight_decay=DECAY, capturable=capturable)
    expected = reference_trajectory(reference_adabound())
    assert largest_error(trajectory(optimizer), expected) <= 1e-12


@pytest.mark.filterwarnings("ignore:This overload of")  # of signatures of torch 1.4
def test_every_step_matches_the_authors_package():
    ours = AdaBound(parameters(), lr=1e-2, weight_decay=DECAY)
    theirs = adabound.AdaBound(parameters(), lr=1e-2, weight_decay=DECAY)
    assert largest_error(trajectory(ours), trajectory(theirs)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_grouped_updates_equal_single_updates_bit_for_bit(dtype):
    together = parameters(dtype)
    alone = parameters(dtype)
    optimizers = [AdaBound(params, 1e-2, (0.9, 0.95)) for params in (together, *zip(alone))]
    for step in range(60):
        set_gradients(together, step)
        if step % 3 == 1:
            together[1].grad = None  # so that the step counts differ
        for p, q in zip(together, alone, strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert np.array_equal(vector(together), vector(alone))
    assert [optimizers[0].state[p]["step"].item() for p in together] == [60, 40]
    assert (vector(together) != start()).all()


# base_lr


def test_a_learning_rate_schedule_scales_both_bounds():
    optimizer = AdaBound([scalar(), scalar()], 0.5, (0.0, 0.99), gamma=1e15)
    scheduler = LambdaLR(optimizer, [0.0, 0.5, 1.0, 0.1, 0.01, 0.0].__getitem__)
    expected = np.zeros(2)
    for factor in (0.0, 0.5, 1.0, 0.1, 0.01):
        expected -= 0.1 * factor * np.array([1e-6, 1e6])  # its gradient at rate final_lr · factor
        assert push(optimizer, 1e-6, 1e6) == pytest.approx(expected.tolist(), rel=1e-12)
        scheduler.step()


def test_a_tensor_lr_may_change_and_base_lr_is_constant():
    lr = torch.tensor(0.5)
    optimizer = AdaBound([scalar()], lr)
    lr.fill_(0.1)
    assert optimizer.param_groups[0]["base_lr"] == 0.5


def test_each_group_has_its_own_bounds():
    first, second, third = scalar(), scalar(), scalar()
    groups = [{"params": [first]}, {"params": [second], "lr": 0.5, "final_lr": 0.4}]
    optimizer = AdaBound(groups, 0.1, (0.0, 0.9), gamma=1e15)
    optimizer.add_param_group({"params": third, "lr": 2.0, "final_lr": 0.3})
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.1, 0.5, 2.0]
    optimizer.param_groups[2]["lr"] = 1.0
    assert push(optimizer, 1.0, 1.0, 1.0) == pytest.approx([-0.1, -0.4, -0.15], rel=1e-12)


def test_a_saved_state_continues_exactly_after_a_learning_rate_decay():
    params = parameters(torch.float32)
    optimizer = AdaBound(params, lr=1e-2, gamma=0.1)
    train(optimizer, range(5))
    optimizer.param_groups[0]["lr"] = 1e-3
    train(optimizer, range(5, 8))
    loaded_params, state = saved_and_loaded([params, optimizer.state_dict()])
    restored = AdaBound(loaded_params, lr=1e-3)
    restored.load_state_dict(state)
    assert restored.param_groups[0]["base_lr"] == 1e-2
    assert np.array_equal(train(optimizer, range(8, 20)), train(restored, range(8, 20)))


# torch's optimizer interface; closures and gradient scalers are in test_lookahead.py


def test_parameters_without_gradient_are_unchanged_and_have_no_state():
    frozen, trained = scalar(3.0), scalar()
    optimizer = AdaBound([frozen, trained], weight_decay=0.1)
    optimizer.add_param_group({"params": [scalar(4.0)]})  # a group without gradients
    first, second, third = push(optimizer, None, 1.0, None)
    assert (first, third) == (3.0, 4.0)
    assert second < 0
    assert list(optimizer.state) == [trained]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"lr": float("nan")}, "lr=nan must be positive"),
        ({"final_lr": 0.0}, "final_lr=0.0 must be positive"),
        ({"gamma": 0}, "gamma=0 must be positive"),
        ({"eps": -1e-8}, "eps=-1e-08 must not be negative"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        ({"betas": (1.0, 0.9)}, r"betas=\(1.0, 0.9\) must lie in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"betas=\(0.9, -0.1\) must lie in \[0, 1\)"),
    ],
)
def test_options_out_of_range_are_rejected_for_optimizer_and_groups(wrong, message):
    with pytest.raises(ValueError, match=message):
        AdaBound([scalar()], **wrong)
    optimizer = AdaBound([scalar()])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": scalar(), **wrong})
    assert len(optimizer.param_groups) == 1


@needs_gpu
@each_kind
def test_gpu_matches_cpu(capturable):
    moved = [nn.Parameter(p.detach().cuda()) for p in parameters()]
    ours = AdaBound(moved, lr=1e-2, weight_decay=DECAY, capturable=capturable)
    for step, expected in zip(range(60), reference_trajectory(reference_adabound()), strict=False):
        on_cpu = [nn.Parameter(p.detach().cpu()) for p in moved]
        set_gradients(on_cpu, step)
        for p, q in zip(moved, on_cpu, strict=True):
            p.grad = q.grad.cuda()
        ours.step()
        np.testing.assert_allclose(vector([p.cpu() for p in moved]), expected, 1e-11, 1e-12)
