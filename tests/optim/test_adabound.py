"""AdaBound: the paper's update at every step, its limits, and the ways of torch's optimizers."""

import copy
import inspect
import io
import pickle

import adabound
import numpy as np
import optimizer_reference as reference
import pytest
import pytorch_optimizer
import torch
from optimizer_reference import (
    STEPS,
    largest_error,
    parameters,
    reference_trajectory,
    set_gradients,
    start,
    trajectory,
    vector,
)
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from phaseavg.optim import AdaBound

DECAY = 1e-2


def reference_adabound(amsbound=False):
    return reference.AdaBound(start(), 1e-2, amsbound=amsbound, decay=DECAY)


def scalar(value=0.0):
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


def step_with(optimizer, *gradients):
    """Take a step with the given gradients of the parameters, None for none; return the changes."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in params]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = None if gradient is None else torch.full_like(p, gradient)
    optimizer.step()
    return [(p - b).item() for p, b in zip(params, before, strict=True)]


def train(optimizer, steps):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
    return vector(params)


# The update


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("amsbound", [False, True])
def test_every_step_is_that_of_the_reference(amsbound, foreach):
    optimizer = AdaBound(
        parameters(), lr=1e-2, weight_decay=DECAY, amsbound=amsbound, foreach=foreach
    )
    expected = reference_trajectory(reference_adabound(amsbound))
    assert largest_error(trajectory(optimizer), expected) <= 1e-12


def test_the_problem_has_elements_at_both_bounds_and_between_them():
    optimizer = reference_adabound()
    clamped = [(optimizer.at_lower, optimizer.at_upper) for _ in reference_trajectory(optimizer)]
    at_lower, at_upper = np.array(clamped).transpose(1, 0, 2)
    between = ~(at_lower | at_upper)
    for some in (at_lower, at_upper, between):
        assert some[40:].any(axis=1).all()  # at the beginning the bounds are wide
    assert (at_lower[1:] != at_lower[:-1]).any()  # and elements change sides


@pytest.mark.filterwarnings("ignore:This overload of")  # of signatures of torch 1.4
@pytest.mark.parametrize("amsbound", [False, True])
def test_every_step_is_that_of_the_authors_package(amsbound):
    ours = AdaBound(parameters(), lr=1e-2, weight_decay=DECAY, amsbound=amsbound)
    # Its base_lrs are fixed by its constructor and not in its state: of no matter in a single run.
    theirs = adabound.AdaBound(parameters(), lr=1e-2, weight_decay=DECAY, amsbound=amsbound)
    assert largest_error(trajectory(ours), trajectory(theirs)) <= 1e-12


@pytest.mark.parametrize("amsbound", [False, True])
def test_every_step_is_that_of_pytorch_optimizer_but_for_what_it_adds_to_v(amsbound):
    ours = AdaBound(parameters(), lr=1e-2, weight_decay=DECAY, amsbound=amsbound)
    theirs = pytorch_optimizer.AdaBound(
        parameters(), lr=1e-2, weight_decay=DECAY, weight_decouple=False, ams_bound=amsbound
    )
    # By design √(v + 1e-15), and the smallest v here are of 1e-9.
    assert largest_error(trajectory(ours), trajectory(theirs)) <= 1e-6


def test_amsbound_is_not_a_trifle():
    plain, largest = (
        AdaBound(parameters(), lr=1e-2, betas=(0.9, 0.95), amsbound=amsbound)
        for amsbound in (False, True)
    )
    assert largest_error(trajectory(plain), trajectory(largest)) > 1e-3


@pytest.mark.parametrize("foreach", [False, True])
def test_the_bounds_of_the_first_update_by_hand(foreach):
    # γ = 1 and t = 1: f/2 and 2f, with f = 0.1; with β1 = 0, m = g, and the rate is lr/|g|.
    def changes(lr_now):
        params = [scalar() for _ in range(4)]
        optimizer = AdaBound(params, 1.0, (0.0, 0.99), gamma=1.0, eps=0.0, foreach=foreach)
        optimizer.param_groups[0]["lr"] = lr_now
        return step_with(optimizer, 1.0, 10.0, -10.0, 100.0)

    assert changes(1.0) == pytest.approx([-0.2, -1.0, 1.0, -5.0], rel=1e-14)
    assert changes(0.5) == pytest.approx([-0.1, -0.5, 0.5, -2.5], rel=1e-14)


def test_a_clamped_element_moves_by_the_uncorrected_average():
    optimizer = AdaBound([scalar()], 1.0, (0.9, 0.99), gamma=1.0)
    assert step_with(optimizer, 1.0) == pytest.approx([-0.2 * 0.1], rel=1e-14)


def test_after_many_updates_both_bounds_are_final_lr():
    params = [scalar() for _ in range(3)]
    optimizer = AdaBound(params, 1e-2, (0.0, 0.99), final_lr=0.25, gamma=1.0)
    step_with(optimizer, 1.0, 1.0, 1.0)
    for p in params:
        optimizer.state[p]["step"].fill_(1e7)
    assert step_with(optimizer, 1e-3, -1.0, 1e3) == pytest.approx([-2.5e-4, 0.25, -250], rel=1e-6)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_with_wide_bounds_it_is_adam(amsgrad):
    # eps = 0, as Adam's is added to the corrected √v.
    shared = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 0.0, "weight_decay": DECAY}
    adam = torch.optim.Adam(parameters(), amsgrad=amsgrad, **shared)
    ours = AdaBound(parameters(), gamma=1e-100, amsbound=amsgrad, **shared)
    assert largest_error(trajectory(ours), trajectory(adam)) <= 1e-12


def test_with_closed_bounds_and_no_average_it_is_sgd():
    sgd = torch.optim.SGD(parameters(), lr=0.02, weight_decay=DECAY)
    ours = AdaBound(parameters(), 1.0, (0.0, 0.999), 0.02, gamma=1e15, weight_decay=DECAY)
    assert largest_error(trajectory(ours), trajectory(sgd)) <= 1e-12


def test_with_closed_bounds_it_is_sgd_on_the_zero_started_average_of_the_gradients():
    params, theta, m = parameters(), start(), np.zeros(reference.SIZE)
    optimizer = AdaBound(params, betas=(0.9, 0.999), final_lr=0.02, gamma=1e15)
    for step in range(STEPS):
        m = 0.9 * m + 0.1 * reference.gradient(theta, step)
        theta = theta - 0.02 * m
        np.testing.assert_allclose(train(optimizer, [step]), theta, rtol=1e-12, atol=1e-13)


# The rate that the bounds refer to


def test_a_scheduler_that_decays_the_rate_shrinks_both_bounds():
    low, high = scalar(), scalar()
    optimizer = AdaBound([low, high], 1.0, (0.0, 0.99), gamma=1e15)
    scheduler = LambdaLR(optimizer, lambda epoch: 0.1**epoch)
    for rate in (0.1, 0.01, 0.001):
        changes = step_with(optimizer, 1e-6, 1e6)
        assert changes == pytest.approx([-rate * 1e-6, -rate * 1e6], rel=1e-12)
        scheduler.step()


def test_a_warmup_that_changes_the_rate_at_once_does_not_change_what_bounds_refer_to():
    optimizer = AdaBound([scalar()], 0.5, (0.0, 0.99), gamma=1e15)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, step / 4))
    for step in (0, 1, 2, 3, 4, 5):
        assert step_with(optimizer, 1.0) == pytest.approx([-0.1 * min(1, step / 4)], rel=1e-12)
        scheduler.step()
    assert optimizer.param_groups[0]["base_lr"] == 0.5


def test_groups_have_bounds_of_their_own():
    first, second, third = scalar(), scalar(), scalar()
    optimizer = AdaBound(
        [{"params": [first]}, {"params": [second], "lr": 0.5, "final_lr": 0.4}], 0.1, (0.0, 0.9)
    )
    optimizer.add_param_group({"params": third, "lr": 2.0, "gamma": 1e15})
    for group in optimizer.param_groups[:2]:
        group["gamma"] = 1e15
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.1, 0.5, 2.0]
    assert step_with(optimizer, 1.0, 1.0, 1.0) == pytest.approx([-0.1, -0.4, -0.1], rel=1e-12)


def test_a_group_made_for_another_optimizer_refers_to_its_rate_of_now():
    group = {"params": [scalar()], "lr": 0.5}
    AdaBound([group])
    group["lr"] = 0.25
    assert AdaBound([group]).param_groups[0]["base_lr"] == 0.25


@pytest.mark.parametrize("amsbound", [False, True])
def test_a_saved_state_goes_on_exactly_where_the_rate_has_already_decayed(amsbound):
    params = parameters(torch.float32)
    optimizer = AdaBound(params, lr=1e-2, gamma=0.1, amsbound=amsbound)
    train(optimizer, range(5))
    optimizer.param_groups[0]["lr"] = 1e-3
    train(optimizer, range(5, 8))
    saved = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)

    restored = AdaBound(loaded["params"], lr=1e-3, amsbound=amsbound)
    restored.load_state_dict(loaded["optimizer"])
    assert restored.param_groups[0]["base_lr"] == 1e-2
    for step in range(8, 20):
        assert np.array_equal(train(optimizer, [step]), train(restored, [step]))


def test_the_count_of_steps_stays_float32_on_the_cpu():
    optimizer = AdaBound(parameters())
    train(optimizer, range(3))
    for dtype in (torch.bfloat16, torch.float64):
        restored = AdaBound(parameters(dtype))
        restored.load_state_dict(optimizer.state_dict())
        for p, state in restored.state.items():
            assert (state["step"].dtype, state["step"].item()) == (torch.float32, 3)
            assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == p.dtype == dtype


# The two paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsbound", [False, True])
def test_updating_at_once_or_one_by_one_is_the_same_bit_for_bit(
    amsbound, maximize, dtype, monkeypatch
):
    at_once = []
    reciprocal = torch._foreach_reciprocal_
    monkeypatch.setattr(
        torch,
        "_foreach_reciprocal_",
        lambda tensors: (at_once.append(len(tensors)), reciprocal(tensors)),
    )
    runs = []
    for foreach in (False, True):
        params = parameters(dtype)
        optimizer = AdaBound(
            params,
            1e-2,
            (0.9, 0.95),
            weight_decay=DECAY,
            amsbound=amsbound,
            foreach=foreach,
            maximize=maximize,
        )
        run = []
        for step in range(60):
            set_gradients(params, step)
            if step % 3 == 1:
                params[1].grad = None  # so that the two counts of steps differ
            optimizer.step()
            run.append(vector(params))
        assert [optimizer.state[p]["step"].item() for p in params] == [60, 40]
        assert len(at_once) == (60 if foreach else 0)
        runs.append(run)
    assert set(at_once) == {1, 2}
    assert np.array_equal(*runs)


def test_on_the_cpu_parameters_are_updated_one_by_one(monkeypatch):
    monkeypatch.delattr(torch, "_foreach_reciprocal_")
    train(AdaBound(parameters()), range(2))
    with pytest.raises(AttributeError):
        train(AdaBound(parameters(), foreach=True), range(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("foreach", [None, False])
def test_the_gpu_gives_the_same(foreach):
    moved = [nn.Parameter(p.detach().cuda()) for p in parameters()]
    ours = AdaBound(moved, lr=1e-2, weight_decay=DECAY, foreach=foreach)
    for step, expected in zip(range(60), reference_trajectory(reference_adabound()), strict=False):
        on_cpu = [nn.Parameter(p.detach().cpu()) for p in moved]
        set_gradients(on_cpu, step)
        for p, q in zip(moved, on_cpu, strict=True):
            p.grad = q.grad.cuda()
        ours.step()
        np.testing.assert_allclose(vector([p.cpu() for p in moved]), expected, 1e-11, 1e-12)


# The ways of torch's optimizers


def test_maximising_is_minimising_the_negative():
    up, down = parameters(), parameters()
    ascent = AdaBound(up, 1e-2, weight_decay=DECAY, maximize=True)
    descent = AdaBound(down, 1e-2, weight_decay=DECAY)
    for step in range(20):
        set_gradients(up, step)
        set_gradients(down, step)
        for p in down:
            p.grad.neg_()
        ascent.step()
        descent.step()
        assert np.array_equal(vector(up), vector(down))
    assert (vector(up) != start()).all()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_left_as_they_are(maximize, foreach):
    params = parameters()
    optimizer = AdaBound(params, weight_decay=0.5, maximize=maximize, foreach=foreach)
    set_gradients(params, 0)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    assert all(torch.equal(p.grad, b) for p, b in zip(params, before, strict=True))


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    p = scalar(2.0)
    optimizer = AdaBound([p], 1.0, (0.0, 0.9), gamma=1e15)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert p.item() == pytest.approx(2 - 0.1 * 4)
    assert optimizer.step() is None


@pytest.mark.parametrize("foreach", [False, True])
def test_parameters_without_gradient_stay_and_have_no_state(foreach):
    frozen, trained = scalar(3.0), scalar()
    optimizer = AdaBound([frozen, trained], weight_decay=0.1, foreach=foreach)
    optimizer.add_param_group({"params": [scalar()]})  # a whole group without
    changes = step_with(optimizer, None, 1.0, None)
    assert changes[0] == changes[2] == 0 > changes[1]
    assert list(optimizer.state) == [trained]


def test_hooks_are_called_around_a_step():
    p, seen = scalar(), []
    optimizer = AdaBound([p])
    optimizer.register_step_pre_hook(lambda *_: seen.append(p.item()))
    optimizer.register_step_post_hook(lambda *_: seen.append(p.item()))
    step_with(optimizer, 1.0)
    assert seen == [0, p.item()]


def test_zero_grad_drops_or_zeroes_the_gradients():
    for foreach in (False, True):
        p = scalar()
        optimizer = AdaBound([p], foreach=foreach)
        p.grad = torch.ones_like(p)
        optimizer.zero_grad(set_to_none=False)
        assert p.grad.item() == 0
        optimizer.zero_grad()
        assert p.grad is None


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
)
def test_a_copy_goes_on_by_itself(duplicate):
    optimizer = AdaBound(parameters(), lr=1e-2, gamma=0.1)
    train(optimizer, range(4))
    optimizer.param_groups[0]["lr"] = 1e-3
    twin = duplicate(optimizer)
    assert {**twin.defaults, "differentiable": False} == {
        **optimizer.defaults,
        "differentiable": False,  # which torch adds to those of copies
    }
    left = train(twin, range(4, 9))
    assert np.array_equal(train(optimizer, range(4, 9)), left)
    twin.add_param_group({"params": scalar()})
    assert twin.param_groups[1]["base_lr"] == 1e-2


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="AdaBound does not take sparse"):
        AdaBound(embedding.parameters()).step()


def test_complex_parameters_are_refused():
    p = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="AdaBound does not take complex"):
        AdaBound([p]).step()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"lr": -1.0}, "lr=-1.0 must be positive"),
        ({"lr": float("nan")}, "lr=nan must be positive"),
        ({"lr": torch.tensor(0.1)}, "must be a number"),
        ({"final_lr": 0.0}, "final_lr=0.0 must be positive"),
        ({"gamma": 0}, "gamma=0 must be positive"),
        ({"eps": -1e-8}, "eps=-1e-08 must not be negative"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        ({"betas": (1.0, 0.9)}, r"betas=\(1.0, 0.9\) must lie in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"betas=\(0.9, -0.1\) must lie in \[0, 1\)"),
    ],
)
def test_values_out_of_range_are_refused_of_the_optimizer_and_of_groups(wrong, message):
    with pytest.raises(ValueError, match=message):
        AdaBound([scalar()], **wrong)
    optimizer = AdaBound([scalar()])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": scalar(), **wrong})
    assert len(optimizer.param_groups) == 1


def test_the_signature_starts_with_that_of_the_authors():
    ours = inspect.signature(AdaBound).parameters
    theirs = inspect.signature(adabound.AdaBound).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert {n: p.default for n, p in theirs.items()} == {n: ours[n].default for n in theirs}
