"""Lookahead compared with a reference and with torch's interface."""

import copy
import pickle

import numpy as np
import optimizer_reference as reference
import pytest
import torch
from optimizer_reference import (
    largest_error,
    parameters,
    params_of,
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
from torch.optim import LBFGS, SGD, Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from phaseavg.optim import AdaBound, Lookahead

DECAY = 1e-2
INNER = {
    "sgd": lambda params: SGD(params, lr=0.05, momentum=0.9, weight_decay=DECAY),
    "adam": lambda params: Adam(params, lr=1e-2, weight_decay=DECAY),
    "adabound": lambda params: AdaBound(params, lr=1e-2, weight_decay=DECAY),
}
REFERENCE = {
    "sgd": lambda: reference.SGD(start(), 0.05, 0.9, decay=DECAY),
    "adam": lambda: reference.Adam(start(), 1e-2, decay=DECAY),
    "adabound": lambda: reference.AdaBound(start(), 1e-2, decay=DECAY),
}
each_inner = pytest.mark.parametrize("inner", INNER)


def lookahead(inner="sgd", dtype=torch.float64, k=5, alpha=0.5):
    return Lookahead(INNER[inner](parameters(dtype)), k, alpha)


def theta(optimizer):
    return vector(params_of(optimizer))


def phi(optimizer):
    """Return the slow weights; before the first step these are the parameters."""
    return vector([optimizer.state.get(p, {}).get("slow_weights", p) for p in params_of(optimizer)])


# The updates


@each_inner
def test_every_step_matches_the_reference(inner):
    expected = reference.Lookahead(REFERENCE[inner](), 5, 0.8)
    actual = trajectory(lookahead(inner, alpha=0.8))
    assert largest_error(actual, reference_trajectory(expected)) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_inner
def test_alpha_1_is_the_inner_optimizer_and_alpha_0_returns_to_the_start(inner, dtype):
    alone = train(INNER[inner](parameters(dtype)), range(30))
    assert np.array_equal(train(lookahead(inner, dtype, 3, 1.0), range(30)), alone)
    returning = train(lookahead(inner, dtype, 3, 0.0), range(30))
    at_start = (returning == vector(parameters(dtype))).all(axis=1)
    assert at_start.tolist() == [False, False, True] * 10


def test_each_group_has_its_own_learning_rate_and_step_count():
    first, second, third = scalar(), scalar(), scalar(5.0)
    inner = SGD([{"params": [first]}, {"params": [second], "lr": 10.0}], lr=1.0)
    optimizer = Lookahead(inner, k=2, alpha=0.25)
    assert push(optimizer, 1.0, 1.0) == [-1, -10]
    optimizer.add_param_group({"params": third, "lr": 4.0})
    optimizer.add_param_group({"params": []})
    assert push(optimizer, 1.0, 1.0, 1.0) == [-0.5, -5, 1]
    assert push(optimizer, 1.0, 1.0, 1.0) == [-1.5, -15, 5 + (-3 - 5) / 4]
    assert push(optimizer, 1.0, 1.0, 1.0) == [-1, -10, -1]


def test_a_parameter_without_gradient_is_unchanged():
    late, trained = scalar(3.0), scalar()
    optimizer = Lookahead(Adam([late, trained], lr=1.0, betas=(0.0, 0.0)), 3, 0.25)
    assert [push(optimizer, None, 1.0)[0] for _ in range(4)] == [3.0] * 4
    assert late not in optimizer.state
    assert push(optimizer, 1.0, 1.0)[0] == pytest.approx(2.0)
    assert optimizer.state[late]["slow_weights"] == 3
    assert push(optimizer, 1.0, 1.0)[0] == pytest.approx(3 + (1 - 3) / 4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_frozen_parameters_of_any_type_are_unchanged(dtype):
    frozen = nn.Parameter(torch.ones(()).to(dtype), requires_grad=False)
    trained = scalar()
    optimizer = Lookahead(SGD([frozen, trained], lr=1.0), k=2, alpha=0.25)
    assert [push(optimizer, None, 1.0) for _ in range(2)] == [[1, -1], [1, -0.5]]


# The slow weights


def test_before_the_first_step_the_slow_weights_are_the_parameters():
    optimizer = lookahead(k=2, alpha=0.0)
    assert optimizer.state_dict()["state"] == {}
    with torch.no_grad():
        params_of(optimizer)[0].fill_(7)  # like loading weights
    loaded = theta(optimizer)
    with optimizer.evaluation_weights():
        assert np.array_equal(theta(optimizer), loaded)
    optimizer.finish()
    optimizer.restart()
    assert np.array_equal(theta(optimizer), loaded)
    assert np.array_equal(train(optimizer, range(2))[1], loaded)


def test_evaluation_weights_sets_slow_weights_and_restores_fast_weights():
    optimizer = lookahead()
    for step in range(12):
        fast, slow = theta(optimizer), phi(optimizer)
        with pytest.raises(KeyError), optimizer.evaluation_weights():
            assert np.array_equal(theta(optimizer), slow)
            params_of(optimizer)[0].data.fill_(7)
            raise KeyError
        assert np.array_equal(theta(optimizer), fast)
        assert np.array_equal(phi(optimizer), slow)
        assert np.array_equal(fast, slow) == (step % 5 == 0)
        train(optimizer, [step])


@pytest.mark.parametrize("end", [Lookahead.restart, Lookahead.finish])
def test_restart_and_finish_within_evaluation_weights_persist(end):
    optimizer = lookahead()
    train(optimizer, range(3))
    with optimizer.evaluation_weights():
        expected = theta(optimizer)
        end(optimizer)
        with optimizer.evaluation_weights():  # nested, like an evaluation
            pass
    assert np.array_equal(theta(optimizer), expected)
    fast = train(optimizer, range(3))[-1]
    with optimizer.evaluation_weights():
        assert np.array_equal(theta(optimizer), expected)
    assert np.array_equal(theta(optimizer), fast)


@pytest.mark.parametrize(("end", "begin"), [(Lookahead.restart, 8.0), (Lookahead.finish, -0.625)])
def test_synchronisation_restart_and_finish_keep_the_momentum(end, begin):
    # The gradient is 1, μ = 1/2, η = 1, k = 2, α = 1/4; m: 1, 3/2 | 7/4; then 15/8, 31/16
    p = scalar()
    optimizer = Lookahead(SGD([p], lr=1.0, momentum=0.5), 2, 0.25)
    assert [push(optimizer, 1.0) for _ in range(3)] == [[-1], [-0.625], [-2.375]]
    if end is Lookahead.restart:
        p.data.fill_(8.0)  # like averaging
    end(optimizer)
    assert theta(optimizer) == phi(optimizer) == [begin]
    assert push(optimizer, 1.0) == [begin - 1.875]
    assert push(optimizer, 1.0) == [begin - (1.875 + 1.9375) / 4]


# State


@pytest.mark.parametrize("done", range(8))
@each_inner
def test_save_and_load_at_any_step_changes_nothing(inner, done):
    optimizer = lookahead(inner, torch.float32, k=3, alpha=0.4)
    train(optimizer, range(done))
    params, state = saved_and_loaded([params_of(optimizer), optimizer.state_dict()])
    restored = Lookahead(INNER[inner](params), k=3, alpha=0.4)
    restored.load_state_dict(state)
    assert np.array_equal(phi(restored), phi(optimizer))
    assert np.array_equal(train(restored, range(done, 12)), train(optimizer, range(done, 12)))
    assert np.array_equal(phi(restored), phi(optimizer))


def test_state_groups_and_defaults_belong_to_the_inner_optimizer():
    optimizer = lookahead("adam")
    train(optimizer, range(7))
    inner = optimizer.inner
    assert isinstance(optimizer, Optimizer)
    assert optimizer.state is inner.state
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.defaults is inner.defaults
    assert optimizer.param_groups[0]["lookahead_steps"] == 2
    restored = lookahead("adam", torch.float32)
    restored.load_state_dict(optimizer.state_dict())
    for state in restored.state.values():
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq", "slow_weights"}
        assert state["slow_weights"].dtype == torch.float32


def test_state_of_another_optimizer_is_rejected_and_changes_nothing():
    optimizer, twin = lookahead(), lookahead()
    train(optimizer, range(3))
    train(twin, range(3))
    with pytest.raises(ValueError, match="not a state of Lookahead; a group has no"):
        optimizer.load_state_dict(INNER["sgd"](parameters()).state_dict())
    assert np.array_equal(train(optimizer, range(3, 9)), train(twin, range(3, 9)))


def test_a_deep_copy_trains_independently():
    optimizer = lookahead(k=3, alpha=0.4)
    train(optimizer, range(4))
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        after = train(twin, range(4, 11))
        assert np.array_equal(train(copy.deepcopy(optimizer), range(4, 11)), after)
    assert np.array_equal(train(optimizer, range(4, 11)), after)


# torch's optimizer interface


def test_hooks_are_called_once_and_in_order():
    p, calls = scalar(), []
    optimizer = Lookahead(SGD([p], lr=1.0), k=1, alpha=0.25)
    for owner, name in ((optimizer, "outer"), (optimizer.inner, "inner")):
        for hook in ("step_pre", "step_post", "state_dict_post", "load_state_dict_pre"):
            register = getattr(owner, f"register_{hook}_hook")
            register(lambda caller, *_, n=f"{name} {hook}": calls.append((n, caller, p.item())))
    push(optimizer, 1.0)
    optimizer.load_state_dict(optimizer.state_dict())
    inner = optimizer.inner
    assert calls == [
        ("outer step_pre", optimizer, 0.0),
        ("inner step_pre", inner, 0.0),
        ("inner step_post", inner, -1.0),
        ("outer step_post", optimizer, -0.25),
        ("outer state_dict_post", optimizer, -0.25),
        ("outer load_state_dict_pre", optimizer, -0.25),
    ]


@pytest.mark.parametrize("inner", [*INNER.values(), LBFGS])
def test_a_closure_is_called_with_gradients_and_its_loss_returned(inner):
    params = parameters()
    optimizer = Lookahead(inner(params), k=2)

    def closure():
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx((start() ** 2).sum())
    assert np.array_equal(phi(optimizer), start())
    assert optimizer.step(closure).item() < (start() ** 2).sum()
    assert np.array_equal(phi(optimizer), theta(optimizer))


def test_steps_skipped_by_a_gradient_scaler_are_not_counted():
    scaled, plain = lookahead("adabound"), lookahead("adabound")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(12):
        set_gradients(params_of(scaled), step)
        factor = torch.inf if step == 4 else scaler.scale(torch.ones(())).item()
        for p in params_of(scaled):
            p.grad *= factor
        scaler.step(scaled)
        scaler.update()
        if step != 4:
            train(plain, [step])
        assert np.array_equal(theta(scaled), theta(plain))


@pytest.mark.filterwarnings("error")
def test_a_scheduler_changes_the_inner_optimizer():
    def run(optimizer):
        scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=12)
        for step in range(11):
            train(optimizer, [step])
            scheduler.step()
            group = optimizer.inner.param_groups[0] if step % 2 else optimizer.param_groups[0]
            yield group["lr"], group["momentum"]

    plain = INNER["sgd"](parameters())
    plain.inner = plain
    rates = list(run(lookahead()))
    assert rates == list(run(plain))
    assert len(set(rates)) > 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "k=0 must be a positive integer"),
        ({"k": 2.5}, "k=2.5 must be a positive integer"),
        ({"alpha": -0.1}, r"alpha=-0.1 must lie in \[0, 1\]"),
        ({"alpha": float("nan")}, "alpha=nan must"),
    ],
)
def test_invalid_arguments_are_rejected(wrong, message):
    with pytest.raises(ValueError, match=message):
        Lookahead(SGD([scalar()], lr=1.0), **wrong)
