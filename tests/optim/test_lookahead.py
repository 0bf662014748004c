"""Lookahead: the paper's updates at every step, its limits, and the ways of torch's optimizers."""

import copy
import io
import pickle
import warnings

import adabound
import numpy as np
import optimizer_reference as reference
import pytest
import pytorch_optimizer
import torch
from optimizer_reference import (
    largest_error,
    parameters,
    reference_trajectory,
    set_gradients,
    start,
    trajectory,
    vector,
)
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from phaseavg.optim import AdaBound, Lookahead

DECAY = 1e-2
MODES = ("keep", "reset", "pullback")
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
each_mode = pytest.mark.parametrize("momentum", MODES)
each_inner = pytest.mark.parametrize("inner", INNER)


def scalar(value=0.0):
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def theta(optimizer):
    return vector(params_of(optimizer))


def phi(optimizer):
    return vector([optimizer.state[p]["slow_weights"] for p in params_of(optimizer)])


def train(optimizer, steps):
    """Take some steps of `parameters()`; return θ after each of them."""
    after = []
    for step in steps:
        set_gradients(params_of(optimizer), step)
        optimizer.step()
        after.append(theta(optimizer))
    return np.array(after)


def push(optimizer, *gradients):
    """Take a step with the given gradients of scalar parameters; return where they end up."""
    params = params_of(optimizer)
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = None if gradient is None else torch.full_like(p, gradient)
    optimizer.step()
    values = [p.item() for p in params]
    return values if len(values) > 1 else values[0]


def same(one, other):
    """Return whether two states are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# The updates


def test_a_trajectory_by_hand():
    # f = θ²/2, so that a step of SGD halves θ; k = 2, α = 1/4.
    p = scalar(1.0)
    optimizer = Lookahead(SGD([p], lr=0.5), k=2, alpha=0.25)
    assert push(optimizer, p.item()) == 0.5
    assert push(optimizer, p.item()) == 1 + (0.25 - 1) / 4 == 0.8125
    assert push(optimizer, p.item()) == 0.40625
    assert push(optimizer, p.item()) == 0.8125 + (0.203125 - 0.8125) / 4


@pytest.mark.parametrize(
    ("momentum", "expected"),
    [
        # The gradient is 1, μ = 1/2, η = 1, k = 2, α = 1/4; a bar is a synchronisation.
        # m: 1, 3/2 | 7/4, 15/8 | 31/16, 63/32
        ("keep", [-1, -0.625, -2.375, -1.53125, -3.46875, -2.5078125]),
        # m: 1, 3/2 | 1, 3/2 | 1, 3/2
        ("reset", [-1, -0.625, -1.625, -1.25, -2.25, -1.875]),
        # m: 1, 3/2 → 3/8 | 19/16, 51/32 → 3/8 + (51/32 - 3/8) / 4 = 87/128 | 343/256, 855/512
        ("pullback", [-1, -0.625, -1.8125, -1.3203125, -2.66015625, -2.07275390625]),
    ],
)
def test_a_trajectory_with_momentum_by_hand(momentum, expected):
    optimizer = Lookahead(SGD([scalar()], lr=1.0, momentum=0.5), 2, 0.25, momentum)
    assert [push(optimizer, 1.0) for _ in expected] == expected


@each_mode
@each_inner
def test_every_step_is_that_of_the_reference(inner, momentum):
    ours = Lookahead(INNER[inner](parameters()), 5, 0.8, momentum)
    expected = reference.Lookahead(REFERENCE[inner](), 5, 0.8, momentum)
    assert largest_error(trajectory(ours), reference_trajectory(expected)) <= 1e-12


@pytest.mark.parametrize("alpha", [0.5, 0.8])
@each_mode
def test_every_step_is_that_of_pytorch_optimizer(momentum, alpha):
    # Which interpolates from θ to φ, and so rounds differently. The authors' code (not on PyPI)
    # differs in its pullback: see the reference.
    theirs = pytorch_optimizer.Lookahead(
        INNER["sgd"](parameters()),
        k=5,
        alpha=alpha,
        pullback_momentum="none" if momentum == "keep" else momentum,
    )
    ours = Lookahead(INNER["sgd"](parameters()), 5, alpha, momentum)
    assert largest_error(trajectory(ours), trajectory(theirs)) <= 1e-12


def test_the_momentum_modes_are_three():
    runs = [
        train(Lookahead(INNER["sgd"](parameters()), momentum=momentum), range(20))[-1]
        for momentum in MODES
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(runs[one] - runs[other]).min() > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_inner
def test_with_alpha_1_it_is_the_inner_optimizer_bit_for_bit(inner, dtype):
    alone = INNER[inner](parameters(dtype))
    wrapped = Lookahead(INNER[inner](parameters(dtype)), k=3, alpha=1.0)
    assert np.array_equal(train(wrapped, range(30)), train(alone, range(30)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_mode
def test_with_alpha_0_the_weights_return_to_the_start_bit_for_bit(momentum, dtype):
    optimizer = Lookahead(INNER["adam"](parameters(dtype)), 3, 0.0, momentum)
    first = theta(optimizer)
    for step, after in enumerate(train(optimizer, range(30)), start=1):
        assert np.array_equal(after, first) == (step % 3 == 0)


def test_k_1_interpolates_after_every_step():
    optimizer = Lookahead(SGD([scalar()], lr=1.0), k=1, alpha=0.25)
    assert [push(optimizer, 1.0) for _ in range(3)] == [-0.25, -0.5, -0.75]


def test_without_momentum_the_modes_are_one():
    for momentum in MODES:
        optimizer = Lookahead(SGD([scalar()], lr=1.0), 2, 0.25, momentum)
        assert [push(optimizer, 1.0) for _ in range(4)] == [-1, -0.5, -1.5, -1]


@each_mode
def test_parameters_without_gradient_stay(momentum):
    frozen, trained = scalar(3.0), scalar()
    optimizer = Lookahead(SGD([frozen, trained], lr=1.0, momentum=0.5), 2, 0.25, momentum)
    assert [push(optimizer, None, 1.0)[0] for _ in range(4)] == [3.0] * 4
    assert optimizer.state[frozen]["slow_weights"] == 3
    assert frozen not in optimizer.inner.state


def test_groups_have_rates_of_their_own_and_one_that_is_added_its_own_window():
    first, second, third = scalar(), scalar(), scalar()
    inner = SGD([{"params": [first]}, {"params": [second], "lr": 10.0}], lr=1.0)
    optimizer = Lookahead(inner, k=2, alpha=0.25, momentum="pullback")
    assert push(optimizer, 1.0, 1.0) == [-1, -10]
    third.data.fill_(5.0)  # its slow weights are those of the moment it is added
    optimizer.add_param_group({"params": third, "lr": 4.0})
    optimizer.add_param_group({"params": []})
    assert push(optimizer, 1.0, 1.0, 1.0) == [-0.5, -5, 1]
    assert push(optimizer, 1.0, 1.0, 1.0) == [-1.5, -15, 5 + (-3 - 5) / 4]
    assert push(optimizer, 1.0, 1.0, 1.0) == [-1, -10, -1]


# What the slow weights are good for


@each_mode
def test_the_slow_weights_are_lent_for_evaluation_and_the_fast_ones_come_back(momentum):
    optimizer = Lookahead(INNER["sgd"](parameters()), 5, 0.5, momentum)
    for step in range(12):
        fast, slow = theta(optimizer), phi(optimizer)
        before = copy.deepcopy(optimizer.state_dict())
        with optimizer.evaluation_weights():
            assert np.array_equal(theta(optimizer), slow)
        assert np.array_equal(theta(optimizer), fast)
        assert np.array_equal(phi(optimizer), slow)
        assert same(optimizer.state_dict(), before)
        assert np.array_equal(fast, slow) == (step % 5 == 0)
        train(optimizer, [step])


def test_the_fast_weights_come_back_after_an_exception_and_whatever_was_done_to_the_slow():
    optimizer = Lookahead(INNER["sgd"](parameters()))
    train(optimizer, range(3))
    fast, slow = theta(optimizer), phi(optimizer)
    with pytest.raises(KeyError), optimizer.evaluation_weights():
        params_of(optimizer)[0].data.fill_(7)
        raise KeyError
    assert np.array_equal(theta(optimizer), fast)
    assert np.array_equal(phi(optimizer), slow)


def test_what_is_restarted_or_finished_while_lent_stays():
    for number in range(2):
        optimizer = Lookahead(INNER["sgd"](parameters()))
        train(optimizer, range(3))
        slow = phi(optimizer)
        with optimizer.evaluation_weights():
            if number == 0:
                params_of(optimizer)[0].data.fill_(7)
                optimizer.restart()
            else:
                optimizer.finish()
        assert np.array_equal(theta(optimizer), phi(optimizer))
        assert np.array_equal(phi(optimizer), slow) == (number == 1)
        train(optimizer, range(3))
        fast = theta(optimizer)
        with optimizer.evaluation_weights():  # the next time the fast ones come back
            pass
        assert np.array_equal(theta(optimizer), fast)


def test_what_is_restarted_stays_even_if_it_is_lent_again_in_the_same_block():
    optimizer = Lookahead(INNER["sgd"](parameters()))
    train(optimizer, range(3))
    with optimizer.evaluation_weights():
        params_of(optimizer)[0].data.fill_(7)
        optimizer.restart()
        with optimizer.evaluation_weights():  # as a test of the network may do by itself
            assert (params_of(optimizer)[0] == 7).all()
    assert (params_of(optimizer)[0] == 7).all()


def test_a_state_of_the_inner_optimizer_can_be_taken_over_by_it():
    inner = INNER["sgd"](parameters())
    for p in inner.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    inner.step()
    optimizer = Lookahead(INNER["sgd"](parameters()), k=2)
    optimizer.inner.load_state_dict(inner.state_dict())  # which knows nothing of a window
    start = phi(optimizer)
    train(optimizer, range(1))
    assert np.array_equal(phi(optimizer), start)
    train(optimizer, range(1))
    assert np.array_equal(phi(optimizer), theta(optimizer))


def test_parameters_keep_their_places_and_their_gradients():
    optimizer = Lookahead(INNER["sgd"](parameters()), k=2)
    places = [p.data_ptr() for p in params_of(optimizer)]
    train(optimizer, range(3))
    with optimizer.evaluation_weights():
        assert [p.data_ptr() for p in params_of(optimizer)] == places
    optimizer.finish()
    optimizer.restart()
    for p, place in zip(params_of(optimizer), places, strict=True):
        assert p.data_ptr() == place != optimizer.state[p]["slow_weights"].data_ptr()
        assert p.requires_grad
        assert p.grad is not None


@each_mode
def test_finishing_goes_back_to_the_slow_weights_and_opens_a_window(momentum):
    optimizer = Lookahead(SGD([scalar()], lr=1.0, momentum=0.5), 2, 0.25, momentum)
    assert [push(optimizer, 1.0) for _ in range(3)][1] == -0.625
    optimizer.finish()
    assert theta(optimizer) == phi(optimizer) == [-0.625]
    # That of step 3, which began from 0 with `reset`; or, pulled back, that of the synchronisation.
    m = {"keep": 1.75, "reset": 1.0, "pullback": 0.375}[momentum]
    fourth, fifth = 1 + m / 2, 1 + (1 + m / 2) / 2
    assert push(optimizer, 1.0) == -0.625 - fourth
    assert push(optimizer, 1.0) == -0.625 - (fourth + fifth) / 4


@each_mode
def test_restarting_takes_the_present_weights_as_the_slow_and_opens_a_window(momentum):
    p = scalar()
    optimizer = Lookahead(SGD([p], lr=1.0, momentum=0.5), 2, 0.25, momentum)
    for _ in range(3):
        push(optimizer, 1.0)
    p.data.fill_(8.0)  # as an average does
    optimizer.restart()
    assert theta(optimizer) == phi(optimizer) == [8]
    m = {"keep": 1.75, "reset": 1.0, "pullback": 1.1875}[momentum]
    fourth, fifth = 1 + m / 2, 1 + (1 + m / 2) / 2
    assert push(optimizer, 1.0) == 8 - fourth
    after = 8 - (fourth + fifth) / 4
    assert push(optimizer, 1.0) == after
    present = {"keep": fifth, "reset": 0.0, "pullback": m + (fifth - m) / 4}[momentum]
    assert push(optimizer, 1.0) == after - (1 + present / 2)


# State


@pytest.mark.parametrize("done", range(8))
@each_mode
@each_inner
def test_saving_and_loading_anywhere_in_a_window_changes_nothing(inner, momentum, done):
    optimizer = Lookahead(INNER[inner](parameters(torch.float32)), 3, 0.4, momentum)
    train(optimizer, range(done))
    loaded = saved_and_loaded([params_of(optimizer), optimizer.state_dict()])

    other = [nn.Parameter(torch.full_like(p, 9)) for p in loaded[0]]
    restored = Lookahead(INNER[inner](other), 3, 0.4, momentum)
    restored.load_state_dict(loaded[1])
    with torch.no_grad():
        for p, value in zip(other, loaded[0], strict=True):
            p.copy_(value)
    assert np.array_equal(phi(restored), phi(optimizer))
    assert np.array_equal(train(restored, range(done, 12)), train(optimizer, range(done, 12)))
    assert np.array_equal(phi(restored), phi(optimizer))


def test_the_state_is_the_inner_optimizers_with_slow_weights_and_count():
    optimizer = Lookahead(INNER["adam"](parameters()), momentum="pullback")
    train(optimizer, range(7))
    ours, inner = optimizer.state_dict(), optimizer.inner.state_dict()
    assert ours["param_groups"] == inner["param_groups"]
    assert ours["param_groups"][0]["lookahead_steps"] == 2
    for index, state in ours["state"].items():
        extra = state.keys() - inner["state"][index].keys()
        assert extra == {"slow_weights", "slow_momentum"}
        assert all(state[key] is value for key, value in inner["state"][index].items())


def test_a_loaded_state_leaves_the_inner_optimizer_its_own():
    optimizer = Lookahead(INNER["adam"](parameters()), momentum="pullback")
    train(optimizer, range(3))
    restored = Lookahead(INNER["adam"](parameters()), momentum="pullback")
    state = optimizer.state_dict()
    restored.load_state_dict(state)
    assert restored.inner.state_dict().keys() == state.keys()
    for p in params_of(restored):
        assert restored.inner.state[p].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert "slow_weights" in state["state"][0]  # what was loaded is not taken apart


def test_state_of_no_parameter_is_the_inner_optimizers_too():
    optimizer = Lookahead(INNER["sgd"](parameters()))
    optimizer.inner.state["restarts"] = {"count": 2}  # as some optimizers keep theirs
    restored = Lookahead(INNER["sgd"](parameters()))
    restored.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert restored.inner.state["restarts"] == {"count": 2}


def test_state_of_parameters_follows_their_type_and_device():
    optimizer = Lookahead(INNER["adam"](parameters()), momentum="pullback")
    train(optimizer, range(3))
    for device, dtype in (("cpu", torch.float32), ("meta", torch.float64)):
        params = [nn.Parameter(p.detach().to(device, dtype)) for p in parameters()]
        restored = Lookahead(INNER["adam"](params), momentum="pullback")
        restored.load_state_dict(optimizer.state_dict())
        for p in params:
            state = restored.state[p]
            for name in ("slow_weights", "slow_momentum", "exp_avg"):
                assert (state[name].device.type, state[name].dtype) == (device, dtype)
            assert state["step"].device.type == "cpu"


@each_mode
def test_a_state_without_slow_weights_is_refused_and_nothing_changed(momentum):
    optimizer = Lookahead(INNER["sgd"](parameters()), momentum=momentum)
    train(optimizer, range(3))
    bare = INNER["sgd"](parameters())
    states = [bare.state_dict()]
    train(bare, range(2))
    states.append(bare.state_dict())
    other = "keep" if momentum == "pullback" else "pullback"
    states.append(Lookahead(INNER["sgd"](parameters()), momentum=other).state_dict())
    before = copy.deepcopy(optimizer.state_dict())
    for state in states:
        with pytest.raises(ValueError, match=f"not the state of a Lookahead .*{momentum}") as error:
            optimizer.load_state_dict(state)
        assert "\n" not in str(error.value)
    assert same(optimizer.state_dict(), before)


def test_a_state_from_a_longer_window_synchronises_at_the_next_step():
    optimizer = Lookahead(SGD([scalar()], lr=1.0), k=10)
    for _ in range(7):
        push(optimizer, 1.0)
    p = scalar(-7.0)
    restored = Lookahead(SGD([p], lr=1.0), k=3, alpha=0.25)
    restored.load_state_dict(optimizer.state_dict())
    assert push(restored, 1.0) == -2
    assert [push(restored, 1.0) for _ in range(3)] == [-3, -4, -2.75]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))]
)
@each_mode
def test_a_copy_goes_on_by_itself(momentum, duplicate):
    optimizer = Lookahead(INNER["sgd"](parameters()), 3, 0.4, momentum)
    optimizer.register_step_post_hook(lambda *_: None)
    train(optimizer, range(4))
    twin = duplicate(optimizer)
    assert repr(twin) == repr(optimizer)
    assert not {id(p) for p in params_of(twin)} & {id(p) for p in params_of(optimizer)}
    left = train(twin, range(4, 11))
    assert np.array_equal(train(optimizer, range(4, 11)), left)
    assert np.array_equal(phi(twin), phi(optimizer))


def test_a_copy_together_with_its_model_belongs_to_the_copied_model():
    model = nn.Linear(2, 1)
    model_copy, twin = copy.deepcopy((model, Lookahead(SGD(model.parameters(), lr=0.1))))
    assert params_of(twin)[0] is model_copy.weight
    assert model_copy.weight in twin.state


# Hooks, closures, schedulers


def test_hooks_are_called_once_and_in_order():
    optimizer = Lookahead(SGD([scalar()], lr=1.0), k=1, alpha=0.25)
    calls = []

    def called(name):
        return lambda *arguments: calls.append((name, arguments[0]))

    optimizer.register_step_pre_hook(called("before step"))
    optimizer.register_step_post_hook(called("after step"))
    optimizer.inner.register_step_pre_hook(called("before inner step"))
    optimizer.inner.register_step_post_hook(called("after inner step"))
    optimizer.register_state_dict_pre_hook(called("before state"))
    optimizer.register_state_dict_post_hook(called("after state"))
    optimizer.register_load_state_dict_pre_hook(called("before load"))
    optimizer.register_load_state_dict_post_hook(called("after load"))

    push(optimizer, 1.0)
    inner = optimizer.inner
    assert calls == [
        ("before step", optimizer),
        ("before inner step", inner),
        ("after inner step", inner),
        ("after step", optimizer),
    ]
    calls.clear()
    optimizer.load_state_dict(optimizer.state_dict())
    names = ("before state", "after state", "before load", "after load")
    assert calls == [(name, optimizer) for name in names]


def test_hooks_see_the_synchronised_weights_and_may_change_arguments_and_states():
    p = scalar()
    optimizer = Lookahead(SGD([p], lr=1.0), k=1, alpha=0.25)
    seen = []
    optimizer.register_step_pre_hook(lambda _, args, kwargs: ((args[0], lambda: 42.0), {}))
    optimizer.register_step_post_hook(lambda _, args, kwargs: seen.append((p.item(), args[1]())))
    p.grad = torch.ones_like(p)
    assert optimizer.step() == 42.0
    assert seen == [(-0.25, 42.0)]

    def with_epoch(_, state):
        return {**state, "epoch": 3}

    def read_epoch(_, state):
        seen.append(state["epoch"])
        return {**state, "state": {0: {"slow_weights": torch.tensor(6.0)}}}

    optimizer.register_state_dict_post_hook(with_epoch)
    optimizer.register_load_state_dict_pre_hook(read_epoch)
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen[1:] == [3]
    assert phi(optimizer) == [6]


@pytest.mark.filterwarnings("ignore:This overload of")  # of the last, which enables no gradients
@pytest.mark.parametrize("inner", [*INNER.values(), adabound.AdaBound])
def test_a_closure_is_called_once_with_gradients_and_its_loss_returned(inner):
    params, calls = parameters(), []
    optimizer = Lookahead(inner(params), k=2)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx((start() ** 2).sum())
    assert optimizer.step(closure) < (start() ** 2).sum()
    assert calls == [True, True]
    assert optimizer.step() is None


def test_zero_grad_drops_or_zeroes_the_gradients():
    p = scalar()
    optimizer = Lookahead(SGD([p], lr=1.0))
    p.grad = torch.ones_like(p)
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.item() == 0
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: LambdaLR(optimizer, lambda step: 0.9**step),
        lambda optimizer: CosineAnnealingLR(optimizer, T_max=12),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=12),
    ],
    ids=["lambda", "cosine", "one cycle"],
)
@each_inner
def test_schedulers_drive_the_inner_optimizer_and_are_resumed(inner, schedule):
    def made(wrap):
        optimizer = wrap(INNER[inner](parameters()))
        return optimizer, schedule(optimizer)

    def run(optimizer, scheduler, steps):
        rates = []
        for step in steps:
            train(optimizer, [step])
            scheduler.step()
            group = optimizer.param_groups[0]
            rates.append((group["lr"], group.get("momentum"), group.get("betas")))
        return rates

    def wrapped(inner):
        return Lookahead(inner, k=3, alpha=0.4)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates = run(*made(lambda inner: inner), range(11))
        optimizer, scheduler = made(wrapped)
        assert run(optimizer, scheduler, range(5)) == rates[:5]
        params, *states = saved_and_loaded(
            [params_of(optimizer), optimizer.state_dict(), scheduler.state_dict()]
        )
        restored, restored_scheduler = made(wrapped)
        for p, value in zip(params_of(restored), params, strict=True):
            p.data.copy_(value)
        restored.load_state_dict(states[0])
        restored_scheduler.load_state_dict(states[1])
        assert run(restored, restored_scheduler, range(5, 11)) == rates[5:]
        run(optimizer, scheduler, range(5, 11))
    assert np.array_equal(theta(restored), theta(optimizer))
    assert len({rate for rate, *_ in rates}) > 5


# The rest


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "k=0 must be a positive integer"),
        ({"k": 2.5}, "k=2.5 must be a positive integer"),
        ({"alpha": -0.1}, r"alpha=-0.1 must lie in \[0, 1\]"),
        ({"alpha": 1.1}, r"alpha=1.1 must lie in \[0, 1\]"),
        ({"alpha": float("nan")}, "alpha=nan must"),
        ({"momentum": "none"}, "momentum='none'; choices: keep, reset, pullback"),
    ],
)
def test_values_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Lookahead(SGD([scalar()], lr=1.0), **wrong)


def test_another_lookahead_is_refused():
    with pytest.raises(ValueError, match="another optimizer"):
        Lookahead(Lookahead(SGD([scalar()], lr=1.0)))


def test_it_shows_what_it_is():
    shown = repr(Lookahead(SGD([scalar()], lr=0.125), k=7, alpha=0.8, momentum="reset"))
    assert shown.startswith("Lookahead (k=7, alpha=0.8, momentum='reset') of SGD (")
    assert "lr: 0.125" in shown


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@each_mode
def test_a_state_saved_on_the_cpu_goes_on_on_the_gpu(momentum):
    optimizer = Lookahead(INNER["sgd"](parameters()), 3, 0.4, momentum)
    train(optimizer, range(4))
    moved = [nn.Parameter(p.detach().cuda()) for p in params_of(optimizer)]
    restored = Lookahead(INNER["sgd"](moved), 3, 0.4, momentum)
    restored.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for step in range(4, 12):
        set_gradients(params_of(optimizer), step)
        for p, on_cpu in zip(moved, params_of(optimizer), strict=True):
            p.grad = on_cpu.grad.cuda()
        optimizer.step()
        restored.step()
        moved_back = vector([p.cpu() for p in moved])
        np.testing.assert_allclose(moved_back, theta(optimizer), 1e-12, 1e-13)
