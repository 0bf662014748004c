"""Averagers: replacement of the weights, state and error messages."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import (
    algorithm_1,
    flat,
    overwrite,
    random_trajectory,
    relative_error,
    saved_and_loaded,
    small_network,
)
from torch import nn

from phaseavg.averaging import (
    BEMA,
    RNA,
    AtEnd,
    Averager,
    Exponential,
    NoAveraging,
    Phasewise,
    Uniform,
    recompute_batchnorm,
)

ALL = [
    NoAveraging,
    Phasewise,
    partial(Phasewise, weights=BEMA()),
    AtEnd,
    partial(AtEnd, window="phase"),
]
EPOCHS = [2, 3, 1]


def train_epoch(model, delta):
    """Simulate an epoch of training: add `delta` to the weights."""
    overwrite(model, flat(model) + delta)


def trained(make, epochs, deltas):
    """Return the weights after each epoch and whether the average replaced them."""
    model = small_network()
    overwrite(model, np.zeros(26))
    averager = make(model, epochs)
    thetas, replaced = [], []
    for delta in deltas:
        train_epoch(model, delta)
        replaced.append(averager.epoch_end(model))
        thetas.append(flat(model))
    return np.array(thetas), replaced


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (NoAveraging, [0, 0, 0, 0, 0, 0]),
        (Averager, [0, 0, 0, 0, 0, 0]),
        (Phasewise, [0, 1, 0, 0, 1, 1]),
        (AtEnd, [0, 0, 0, 0, 0, 1]),
        (partial(AtEnd, window="phase"), [0, 0, 0, 0, 0, 1]),
    ],
)
def test_epoch_end_returns_true_exactly_when_it_replaces_the_weights(make, expected):
    deltas = random_trajectory(small_network(), 6)
    thetas, replaced = trained(make, EPOCHS, deltas)
    assert replaced == expected
    first = expected.index(1) if 1 in expected else len(expected)
    np.testing.assert_array_equal(thetas[:first], np.cumsum(deltas, axis=0)[:first])


def test_observer_never_replaces_the_weights():
    model, thetas = small_network(), random_trajectory(small_network(), 6)
    observer = Phasewise(model, EPOCHS)
    for theta in thetas:
        overwrite(model, theta)
        assert observer.epoch_end(model, replace=False) is False
        np.testing.assert_array_equal(flat(model), theta)
        t, length = observer.observed
        epoch = observer.ended
        expected = algorithm_1(thetas[epoch - t : epoch], 0.9, length)[-1]
        assert relative_error(flat(observer.averaged(model)), expected) <= 1e-12
    assert observer.remaining == 0


def test_averaged_copy_is_correct_at_every_epoch_and_leaves_the_model_unchanged():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).double().train()
    batches = [torch.randn(8, 3).double() for _ in range(3)]
    averager = Phasewise(model, [2, 1])
    with pytest.raises(RuntimeError, match=r"nothing has been averaged yet: call epoch_end\(\)"):
        averager.averaged(model, batches)
    for theta in random_trajectory(model, 3):
        overwrite(model, theta)
        averager.epoch_end(model)
        before = copy.deepcopy(model.state_dict())
        replica = averager.averaged(model, batches)
        assert not any(module.training for module in replica.modules())
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
        expected = copy.deepcopy(model)
        averager.copy_to(expected)
        recompute_batchnorm(expected, batches)
        for name, tensor in replica.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name])
    named = [{"inputs": images} for images in batches]
    same = averager.averaged(model, named, lambda model, batch: model(batch["inputs"]))
    assert torch.equal(same[1].running_mean, replica[1].running_mean)


def test_remaining_epochs_are_counted_and_an_unfinished_phase_raises():
    model = small_network()
    averager = Phasewise(model, [2, 1], Uniform())
    for remaining in (2, 1):
        averager.epoch_end(model)
        assert averager.remaining == remaining
    with pytest.raises(RuntimeError, match="after 2 of the 3 epochs of the phases; the last"):
        averager.finish()
    averager.epoch_end(model)
    averager.finish()
    theta = flat(model) + 1
    overwrite(model, theta)
    with pytest.raises(RuntimeError, match="all 3 epochs of the 2 phases are over"):
        averager.epoch_end(model)
    np.testing.assert_array_equal(flat(model), theta)


@pytest.mark.parametrize("done", range(7))
@pytest.mark.parametrize("make", ALL)
def test_a_restored_averager_continues_exactly(make, done):
    deltas = random_trajectory(small_network(), 6)
    expected, replaced = trained(make, EPOCHS, deltas)
    model = small_network()
    overwrite(model, np.zeros(26))
    averager = make(model, EPOCHS)
    for delta in deltas[:done]:
        train_epoch(model, delta)
        averager.epoch_end(model)
    state, averager_state = saved_and_loaded((model.state_dict(), averager.state_dict()))
    model = small_network()
    averager = make(model, EPOCHS)  # made from other weights
    model.load_state_dict(state)
    averager.load_state_dict(averager_state)
    for delta, theta, flag in zip(deltas[done:], expected[done:], replaced[done:], strict=True):
        train_epoch(model, delta)
        assert averager.epoch_end(model) == flag
        np.testing.assert_array_equal(flat(model), theta)
    assert averager.remaining == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda m: Phasewise(m, [3, 2]), r"lengths=\[4, 2\]: the state was saved with lengths=\[3"),
        (lambda m: AtEnd(m, [4, 2]), "averager=Phasewise: the state was saved with averager=AtEnd"),
        (lambda m: NoAveraging(m, [4, 2]), "averager=Phasewise: .* averager=NoAveraging"),
        (
            lambda m: Phasewise(m, [4, 2], Exponential(0.5)),
            r"weights=Exponential\(gamma0=0.9\): .* weights=Exponential\(gamma0=0.5\)",
        ),
        (lambda m: Phasewise(m, [4, 2], Uniform()), r"weights=Exponential.* weights=Uniform\(\)"),
        (lambda m: Phasewise(nn.Linear(3, 4).double(), [4, 2]), "parameters of other shapes"),
        (lambda m: Phasewise(m.float(), [4, 2]), "parameters of other shapes or types"),
    ],
)
def test_state_of_another_averager_is_rejected(other, message):
    averager = Phasewise(small_network(), [4, 2])
    averager.epoch_end(small_network())
    before = flat(averager.averaged(small_network()))
    with pytest.raises(ValueError, match=message) as caught:
        averager.load_state_dict(other(small_network()).state_dict())
    assert "\n" not in str(caught.value)
    assert averager.ended == 1
    np.testing.assert_array_equal(flat(averager.averaged(small_network())), before)


def test_the_state_of_other_layers_of_the_same_shapes_is_rejected():
    first, second = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    first[1].requires_grad_(False)
    second[0].requires_grad_(False)
    state = Phasewise(first, [1], trainable_only=True).state_dict()
    with pytest.raises(ValueError, match=r"average: the state was saved with 0.weight in place of"):
        Phasewise(second, [1], trainable_only=True).load_state_dict(state)
    second[1] = torch.compile(second[1], backend="eager")  # names with _orig_mod
    state = Phasewise(second, [1], trainable_only=True).state_dict()
    second[1] = nn.Linear(2, 2)
    Phasewise(second, [1], trainable_only=True).load_state_dict(state)


def test_state_of_rna_has_window_and_settings_but_not_the_folder(tmp_path):
    model = small_network()
    saved = AtEnd(model, [2], RNA(tmp_path, rho=0.1)).state_dict()
    with pytest.raises(ValueError, match=r"weights=RNA\(rho=1e-05, window=None\)"):
        AtEnd(model, [2], RNA(tmp_path)).load_state_dict(saved)
    other = Phasewise(nn.Linear(3, 4), [2], RNA(tmp_path))
    with pytest.raises(ValueError, match="average: the state was saved for other parameters"):
        Phasewise(model, [2], RNA(tmp_path)).load_state_dict(other.state_dict())
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in tmp_path.glob("*.pt"):
        path.rename(moved / path.name)
    AtEnd(model, [2], RNA(moved, rho=0.1)).load_state_dict(saved)
    saved = AtEnd(model, [1, 1]).state_dict()
    with pytest.raises(ValueError, match=r"windows=\[\[1, 2\]\]: .* windows=\[\[0, 2\]\]"):
        AtEnd(model, [1, 1], window="phase").load_state_dict(saved)


@pytest.mark.parametrize("state", [None, {}, nn.Linear(1, 1).state_dict()])
def test_what_is_not_a_state_is_rejected(state):
    with pytest.raises(ValueError, match="state: is not from an averager's state_dict"):
        Phasewise(nn.Linear(1, 1), [1]).load_state_dict(state)


def test_invalid_window_is_rejected_with_the_choices():
    with pytest.raises(ValueError, match="window='epoch'; choices: training, phase"):
        AtEnd(small_network(), [2], window="epoch")


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("phases", [[], [2, 0]])
def test_phases_without_epochs_are_rejected(make, phases):
    with pytest.raises(ValueError) as error:
        make(small_network(), phases)
    assert f"epochs={phases} must be a list of positive numbers" in str(error.value)


def test_a_number_is_no_list_of_phases():
    with pytest.raises(TypeError, match=r"^epochs=80: must be a list, such as \[80, 40, 40\]$"):
        Phasewise(small_network(), 80)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (0.95, "must be an object with a `step` method"),
        (Exponential, "must be an object with a `step` method"),
        (SimpleNamespace(step=lambda t, epochs: 0.5), r"step\(1, 2\) must be 1, not 0.5"),
        (SimpleNamespace(step=lambda t, epochs: math.nan), r"step\(1, 2\) must be 1, not nan"),
        (SimpleNamespace(step=lambda t: 1.0), r"step\(t, T\) must return w_t"),
        (SimpleNamespace(step=lambda t, epochs: None), r"step\(t, T\) must return w_t"),
        (SimpleNamespace(step=3), r"step\(t, T\) must return w_t"),
    ],
)
def test_weights_need_a_step_that_starts_at_1(weights, message):
    with pytest.raises(ValueError, match=f"^weights=.*: {message}"):
        Phasewise(small_network(), [2], weights)


def test_coefficients_need_not_exist_for_lengths_that_no_phase_has():
    rising = SimpleNamespace(step=lambda t, epochs: 1 - 0.5 * (t - 1) / (epochs - 1))
    model = small_network()
    averager = Phasewise(model, [3], rising)
    for _ in range(3):
        averager.epoch_end(model)
    assert averager.coefficients() == pytest.approx([0.125, 0.375, 0.5])


@pytest.mark.parametrize("make", [Phasewise, AtEnd])
def test_device_and_trainable_only_are_options(make):
    model = nn.Linear(2, 1, bias=False).requires_grad_(False).double()
    (tensor,) = make(model, [2], device="meta").average.tensors
    assert (tensor.numel(), tensor.device.type) == (2, "meta")  # frozen parameters too
    model = nn.Sequential(model, nn.Linear(1, 1, bias=False))
    (tensor,) = make(model, [2], trainable_only=True).average.tensors
    assert (tensor.numel(), tensor.device.type) == (1, "cpu")


@pytest.mark.parametrize("kind", [Exponential, BEMA, RNA])
def test_a_parameter_that_becomes_trainable_later_is_reported(kind, tmp_path):
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1))
    weights = RNA(tmp_path) if kind is RNA else kind()
    averager = Phasewise(model, [2], weights, trainable_only=True)
    averager.epoch_end(model)
    model[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"trainable_only=True: 0\.weight was frozen"):
        averager.epoch_end(model)


class WithAttributes:
    """Coefficients with a function, another object and a number of numpy as attributes."""

    def __init__(self, factor):
        self.factor, self.function, self.object = factor, lambda t: 1 / t, object()

    def step(self, t, epochs):
        return self.factor * self.function(t)


def test_a_state_is_loaded_whatever_made_its_numbers():
    model = small_network()
    averager = Phasewise(model, np.diff([0, 2, 5]), WithAttributes(np.float64(1.0)))
    state = saved_and_loaded(averager.state_dict())
    Phasewise(model, [2, 3], WithAttributes(1.0)).load_state_dict(state)


def test_coefficients_are_empty_before_the_first_epoch():
    model = nn.Linear(1, 1)
    for averager in (NoAveraging(model, [2]), Phasewise(model, [2]), AtEnd(model, [2])):
        assert averager.coefficients() == []
        assert averager.observed == (0, 0)
