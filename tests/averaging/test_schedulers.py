"""Phases from a learning-rate scheduler."""

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import small_network
from torch import nn
from torch.optim import lr_scheduler

from phaseavg.averaging import Phasewise, Uniform


def make_sgd(model):
    return torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 9.0}], lr=0.1
    )


@pytest.mark.parametrize(
    ("scheduler", "lengths"),
    [
        (partial(lr_scheduler.MultiStepLR, milestones=[5, 8]), [5, 3, 2]),
        (partial(lr_scheduler.StepLR, step_size=4), [4, 4, 2]),
        (partial(lr_scheduler.LambdaLR, lr_lambda=lambda e: 1 if e < 3 else 0.1), [3, 7]),
        (partial(lr_scheduler.MultiStepLR, milestones=[50]), [10]),
        (  # the first group's rate is constant
            partial(lr_scheduler.LambdaLR, lr_lambda=[lambda e: 1, lambda e: 1 if e < 6 else 0.1]),
            [6, 4],
        ),
        (
            lambda optimizer: lr_scheduler.SequentialLR(  # a warm-up to 1e-17 above the full rate
                optimizer,
                [
                    lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
                    lr_scheduler.MultiStepLR(optimizer, [2]),
                ],
                milestones=[5],
            ),
            [7, 3],
        ),
        (
            lambda optimizer: lr_scheduler.ChainedScheduler(
                [
                    lr_scheduler.MultiStepLR(optimizer, [6]),
                    lr_scheduler.MultiStepLR(optimizer, [2]),
                ]
            ),
            [2, 4, 4],
        ),
    ],
)
def test_phases_end_where_a_scheduler_lowers_the_learning_rate(scheduler, lengths):
    model = small_network()
    optimizer = make_sgd(model)
    instance = scheduler(optimizer)
    before = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(instance.state_dict())
    averager = Phasewise.from_scheduler(model, instance, 10, weights=Uniform())
    assert averager.lengths == lengths
    assert isinstance(averager.average.weights, Uniform)
    after = optimizer.state_dict(), instance.state_dict()
    assert repr(after) == repr(before)
    # The original scheduler gives the same phases during training.
    ends, rates = [], [[group["lr"] for group in optimizer.param_groups]]
    for epoch in range(1, 10):
        optimizer.step()
        instance.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        ends += [epoch] if (np.array(rates[-1]) < 0.999 * np.array(rates[-2])).any() else []
    assert np.cumsum(lengths).tolist() == [*ends, 10]


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (partial(lr_scheduler.StepLR, step_size=4), 1, "last_epoch=1: create the averager before"),
        (
            lambda optimizer: lr_scheduler.ChainedScheduler([lr_scheduler.StepLR(optimizer, 4)]),
            2,
            "last_epoch=2: create the averager before",
        ),
        (lr_scheduler.ReduceLROnPlateau, 0, "ReduceLROnPlateau: rates are unknown before"),
        (
            partial(lr_scheduler.CosineAnnealingLR, T_max=10),
            0,
            r"=CosineAnnealingLR: the learning rate falls after nearly .*; pass epochs=\[…\]$",
        ),
        (
            lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
            0,
            "=OneCycleLR: the learning rate falls after nearly every epoch, so there are no phases",
        ),
    ],
)
def test_a_scheduler_without_phases_is_rejected(scheduler, steps, message):
    model = small_network()
    optimizer = make_sgd(model)
    instance = scheduler(optimizer)
    for _ in range(steps):
        optimizer.step()
        instance.step()
    with pytest.raises(ValueError, match=message):
        Phasewise.from_scheduler(model, instance, 10)


def test_a_wrapped_scheduler_is_rejected():
    model = small_network()
    wrapped = SimpleNamespace(scheduler=lr_scheduler.StepLR(make_sgd(model), 5))  # as accelerate's
    with pytest.raises(TypeError, match=r"scheduler=SimpleNamespace: .*accelerate, pass epochs="):
        Phasewise.from_scheduler(model, wrapped, 10)


def test_the_object_of_a_bound_method_is_not_copied():
    class Owner:  # such as a module with a lock or a log file
        def factor(self, epoch):
            return 1 if epoch < 3 else 0.1

        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")

    model = small_network()
    optimizer = make_sgd(model)
    plain = lr_scheduler.LambdaLR(optimizer, Owner().factor)
    assert Phasewise.from_scheduler(model, plain, 10).lengths == [3, 7]
    chained = lr_scheduler.ChainedScheduler([plain, lr_scheduler.StepLR(optimizer, 5)])
    assert Phasewise.from_scheduler(model, chained, 10).lengths == [3, 2, 5]


@pytest.mark.parametrize(("total", "lengths"), [(1, [1]), (2, [1, 1]), (3, None)])
def test_two_epochs_may_be_two_phases(total, lengths):
    model = nn.Linear(1, 1)
    scheduler = lr_scheduler.ExponentialLR(torch.optim.SGD(model.parameters()), 0.9)
    if lengths is None:
        with pytest.raises(ValueError, match="so there are no phases"):
            Phasewise.from_scheduler(model, scheduler, total)
    else:
        assert Phasewise.from_scheduler(model, scheduler, total).lengths == lengths


def test_timm_lowers_the_rate_an_epoch_before_its_milestones():
    # docs/averager.md has milestones of 81 and 121 for phases of 80, 40 and 40 epochs.
    multistep = pytest.importorskip("timm.scheduler").MultiStepLRScheduler
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler, rates = multistep(optimizer, [81, 121], decay_rate=0.1), []
    for epoch in range(160):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)  # as in timm's train.py
    assert rates == pytest.approx([1] * 80 + [0.1] * 40 + [0.01] * 40)
