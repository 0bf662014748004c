"""When the average replaces the weights."""

import copy
import io
from functools import partial

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

from phaseavg.averaging import AtEnd, Averager, Exponential, Learnt, NoAveraging, Phasewise, Uniform

ALL = [
    NoAveraging,
    Phasewise,
    AtEnd,
    partial(AtEnd, window="phase"),
    partial(Phasewise, weights=Learnt()),
    partial(AtEnd, weights=Learnt(window=2)),
]
EPOCHS = [2, 3, 1]


def train_epoch(model, delta):
    """Stand in for training: whatever the weights are, an epoch adds `delta` to them."""
    overwrite(model, flat(model) + delta)


def with_epoch_end(make, epochs, deltas):
    """Return the weights after each epoch and whether they were replaced."""
    model = small_network()
    overwrite(model, np.zeros(26))
    averager = make(model, epochs)
    thetas, replaced = [], []
    for delta in deltas:
        train_epoch(model, delta)
        replaced.append(averager.epoch_end(model))
        thetas.append(flat(model))
    return np.array(thetas), replaced


def with_explicit_calls(make, epochs, deltas):
    """Return the same from a loop that counts the phases itself."""
    model = small_network()
    overwrite(model, np.zeros(26))
    averager = make(model, epochs)
    deltas, thetas, replaced = iter(deltas), [], []
    for phase, length in enumerate(epochs):
        averager.start_phase(model, phase)
        for epoch in range(length):
            train_epoch(model, next(deltas))
            averager.observe(model)
            ended = epoch == length - 1 and averager.end_phase(model, phase)
            replaced.append(ended)
            thetas.append(flat(model))
    return np.array(thetas), replaced


def test_two_phases_worked_by_hand():
    # T = 2 in both phases and γ = γ0^(80/2) = ½, so that an average is ⅓ θ_1 + ⅔ θ_2.
    model = nn.Linear(1, 1, bias=False).double()
    overwrite(model, [0.0])
    averager = Phasewise(model, epochs=[2, 2], weights=Exponential(0.5 ** (2 / 80)))

    def epoch(delta):
        train_epoch(model, delta)
        return averager.epoch_end(model)

    assert epoch(3) is False
    assert model.weight.item() == 3  # 0 + 3, as trained
    assert epoch(3) is True
    assert model.weight.item() == pytest.approx(5, rel=1e-14)  # ⅓ · 3 + ⅔ · 6
    assert epoch(3) is False
    assert model.weight.item() == pytest.approx(8, rel=1e-14)  # from 5 on, not from 6
    assert averager.average.module.weight.item() == pytest.approx(8, rel=1e-14)  # nothing of 3, 6
    assert epoch(6) is True
    assert model.weight.item() == pytest.approx(12, rel=1e-14)  # ⅓ · 8 + ⅔ · 14


def test_phases_of_any_lengths_follow_algorithm_1():
    deltas = random_trajectory(small_network(), 6)
    thetas, _ = with_epoch_end(Phasewise, EPOCHS, deltas)
    theta, epoch = np.zeros(26), 0
    for length in EPOCHS:
        phase = theta + np.cumsum(deltas[epoch : epoch + length], axis=0)
        theta = algorithm_1(phase, 0.9, length)[-1]
        epoch += length
        assert relative_error(thetas[epoch - 1], theta) <= 1e-12
        assert length == 1 or relative_error(phase[-1], theta) > 1e-3


@pytest.mark.parametrize("make", ALL)
def test_own_counting_equals_the_explicit_calls(make):
    deltas = random_trajectory(small_network(), 6)
    thetas, replaced = with_epoch_end(make, EPOCHS, deltas)
    explicit_thetas, explicit_replaced = with_explicit_calls(make, EPOCHS, deltas)
    np.testing.assert_array_equal(thetas, explicit_thetas)
    assert replaced == explicit_replaced


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (NoAveraging, [0, 0, 0, 0, 0, 0]),
        (Phasewise, [0, 1, 0, 0, 1, 1]),
        (AtEnd, [0, 0, 0, 0, 0, 1]),
        (partial(AtEnd, window="phase"), [0, 0, 0, 0, 0, 1]),
    ],
)
def test_the_answer_is_true_exactly_when_the_weights_are_replaced(make, expected):
    assert with_epoch_end(make, EPOCHS, random_trajectory(small_network(), 6))[1] == expected


@pytest.mark.parametrize("make", [Averager, NoAveraging])
def test_no_averaging_never_changes_the_weights(make):
    deltas = random_trajectory(small_network(), 6)
    thetas, _ = with_epoch_end(make, EPOCHS, deltas)
    np.testing.assert_array_equal(thetas, np.cumsum(deltas, axis=0))


@pytest.mark.parametrize(("window", "first"), [("training", 0), ("phase", 3)])
def test_averaging_at_the_end_is_the_closed_form_over_its_window(window, first):
    epochs = [1, 2, 4]
    deltas = random_trajectory(small_network(), 7)
    thetas, _ = with_epoch_end(partial(AtEnd, window=window), epochs, deltas)
    trained = np.cumsum(deltas, axis=0)
    np.testing.assert_array_equal(thetas[:-1], trained[:-1])
    expected = alphas(0.9, 7 - first) @ trained[first:]
    assert relative_error(thetas[-1], expected) <= 1e-12


@pytest.mark.parametrize("make", [Phasewise, AtEnd])
def test_weights_other_than_the_papers_can_be_chosen(make):
    deltas = random_trajectory(small_network(), 4)
    thetas, _ = with_epoch_end(partial(make, weights=Uniform()), [4], deltas)
    assert relative_error(thetas[-1], np.cumsum(deltas, axis=0).mean(0)) <= 1e-14


def test_learnt_weights_start_from_where_the_phase_does():
    # θ_0 is the average of the phase before; of one epoch there is nothing to learn.
    deltas = random_trajectory(small_network(), 3)
    thetas, _ = with_epoch_end(partial(Phasewise, weights=Learnt(rho=1e-3)), [1, 2], deltas)
    np.testing.assert_array_equal(thetas[0], deltas[0])
    gram = deltas[1:] @ deltas[1:].T
    z = np.linalg.solve(gram / np.linalg.norm(gram, 2) + 1e-3 * np.eye(2), np.ones(2))
    first, second = deltas[0] + deltas[1], deltas[0] + deltas[1] + deltas[2]
    assert relative_error(thetas[-1], (z[0] * first + z[1] * second) / z.sum()) <= 1e-12


@pytest.mark.parametrize(
    ("make", "longest"),
    [(Phasewise, 3), (AtEnd, 6), (partial(AtEnd, window="phase"), 1)],
)
def test_the_longest_window_is_that_of_what_is_averaged(make, longest):
    model = small_network()
    averager = make(model, EPOCHS)
    assert averager.longest_window == longest
    opened = []
    averager.average.start = lambda model, epochs: opened.append(epochs)
    for phase in range(3):
        averager.start_phase(model, phase)
    assert max(opened) == longest


def test_a_wrong_window_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="window='epoch'; choices: training, phase"):
        AtEnd(small_network(), [2], window="epoch")


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("epochs", [[], [0], [2, 0], [-1]])
def test_phases_without_epochs_are_refused(make, epochs):
    with pytest.raises(ValueError) as error:
        make(small_network(), epochs)
    assert f"epochs={epochs} " in str(error.value)


@pytest.mark.parametrize("done", range(7))
@pytest.mark.parametrize("make", ALL)
def test_a_restored_averager_continues_exactly(make, done):
    deltas = random_trajectory(small_network(), 6)
    expected, replaced = with_epoch_end(make, EPOCHS, deltas)
    model = small_network()
    overwrite(model, np.zeros(26))
    averager = make(model, EPOCHS)
    for delta in deltas[:done]:
        train_epoch(model, delta)
        averager.epoch_end(model)
    saved = io.BytesIO()
    torch.save((model.state_dict(), averager.state_dict()), saved)
    saved.seek(0)
    state, averager_state = torch.load(saved)
    model = small_network()
    averager = make(model, EPOCHS)  # made from other weights
    model.load_state_dict(state)
    averager.load_state_dict(averager_state)
    for delta, theta, flag in zip(deltas[done:], expected[done:], replaced[done:], strict=True):
        train_epoch(model, delta)
        assert averager.epoch_end(model) == flag
        np.testing.assert_array_equal(flat(model), theta)
    with pytest.raises(RuntimeError):
        averager.epoch_end(model)


@pytest.mark.parametrize("make", ALL)
def test_an_epoch_after_all_phases_is_refused(make):
    model = small_network()
    averager = make(model, [1, 1])
    for _ in range(2):
        averager.epoch_end(model)
    theta = flat(model) + 1
    overwrite(model, theta)
    with pytest.raises(RuntimeError, match="all 2 epochs of the 2 phases are over"):
        averager.epoch_end(model)
    np.testing.assert_array_equal(flat(model), theta)


def test_replacing_leaves_the_optimizer_alone_and_it_goes_on_from_the_average():
    torch.manual_seed(0)
    model = small_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    averager = Phasewise(model, [2, 1], Uniform())

    def step():
        optimizer.zero_grad()
        model(torch.ones(4, 3).double()).square().mean().backward()
        optimizer.step()

    step()
    averager.epoch_end(model)
    step()
    trained = flat(model)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    assert averager.epoch_end(model)
    replaced = flat(model)
    assert relative_error(replaced, trained) > 1e-3
    after = optimizer.state_dict()["state"]
    assert len(before) == 4
    for key, state in before.items():
        assert state["momentum_buffer"].abs().max() > 0
        assert torch.equal(state["momentum_buffer"], after[key]["momentum_buffer"])
    step()
    buffers = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
    moved = np.concatenate([buffer.numpy().ravel() for buffer in buffers])
    assert relative_error(flat(model), replaced - 0.1 * moved) <= 1e-14
