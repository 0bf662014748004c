"""Learnt weights: regularised nonlinear acceleration."""

import copy
import json

import numpy as np
import pytest
import torch
from learnt_windows import convolutional, observed, opened, result
from reference import flat, overwrite, random_trajectory, relative_error, rna, small_network
from torch import nn

from phaseavg.averaging.learnt import Learnt, LearntAverage


def regression_trajectory(epochs):
    """Return the weights before and after each epoch of ten steps of SGD with momentum."""
    torch.manual_seed(0)
    model = small_network()
    inputs, targets = torch.randn(64, 3).double(), torch.randn(64, 2).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    thetas = [flat(model)]
    for _ in range(epochs):
        for batch in torch.randint(64, (10, 8)):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
        thetas.append(flat(model))
    return np.array(thetas)


# Random differences of 26 numbers span all 26 epochs and no more: one with 30 would be singular.
@pytest.mark.parametrize("K", [None, 1, 2, 5, 40])
@pytest.mark.parametrize("rho", [0.0, 1e-5, 1e-2, 10.0])
@pytest.mark.parametrize("trajectory", ["random", "trained"])
def test_the_average_is_the_reference_at_every_epoch(trajectory, rho, K):  # noqa: N803
    model, epochs = small_network(), 12
    random = random_trajectory(model, epochs + 1)
    thetas = {"random": random, "trained": regression_trajectory(epochs)}[trajectory]
    average = opened(model, thetas[0], Learnt(rho, K), epochs)
    for t in range(1, epochs + 1):
        overwrite(model, thetas[t])
        average.observe(model)
        c, expected = rna(thetas[: t + 1], rho, K)
        actual = average.coefficients()
        condition = average.notes["condition"]
        assert average.notes["solved_by"] == "solve"
        assert condition < 1e9  # or the tolerances below mean little
        assert len(actual) == average.n_averaged == t
        assert actual[: t - len(c)] == [0.0] * (t - len(c))
        assert relative_error(actual[t - len(c) :], c) <= 1e-14 * condition + 1e-13
        assert relative_error(result(average), expected) <= 1e-14 * condition + 1e-13
        assert sum(actual) == pytest.approx(1, abs=1e-12 * max(1, np.abs(c).max()))
        json.dumps(average.notes, allow_nan=False)


def test_learnt_weights_are_not_all_positive_and_use_the_newer_points():
    # By hand: θ = 0, 1, 1.5 has R = [1, ½], and with ρ = 0 and two orthogonal coordinates
    # G = diag(1, ¼) gives z ∝ (1, 4): c = (0.2, 0.8).
    thetas = np.zeros((3, 26))
    thetas[1:, 0] = 1
    thetas[2, 1] = 0.5
    average = observed(thetas, Learnt(rho=0))
    np.testing.assert_allclose(average.coefficients(), [0.2, 0.8], rtol=1e-14)
    np.testing.assert_allclose(result(average)[:2], [1, 0.4], rtol=1e-14)
    assert average.notes == {"condition": pytest.approx(4), "solved_by": "solve"}
    # Two steps in one direction, the second shorter: the average goes beyond the last weights.
    thetas[2] = 0
    thetas[2, 0] = 1.5
    thetas[1:, 2] = 1e-3
    ahead = observed(thetas, Learnt(rho=0))
    assert ahead.coefficients()[0] < -0.5


def test_the_condition_number_is_that_of_the_regularised_matrix():
    thetas = random_trajectory(small_network(), 9)
    for rho in (0.0, 1e-5, 0.1):
        R = np.diff(thetas, axis=0).T  # noqa: N806
        G = R.T @ R / np.linalg.norm(R.T @ R, 2)  # noqa: N806
        expected = np.linalg.cond(G + rho * np.eye(8))
        notes = observed(thetas, Learnt(rho)).notes
        assert notes == {"condition": pytest.approx(expected, rel=1e-9), "solved_by": "solve"}


@pytest.mark.parametrize("rho", [1e8, 1e12])
def test_a_large_regularisation_gives_the_uniform_mean(rho):
    thetas = random_trajectory(small_network(), 8)
    average = observed(thetas, Learnt(rho))
    np.testing.assert_allclose(average.coefficients(), 1 / 7, rtol=1e-6)
    assert relative_error(result(average), thetas[1:].mean(0)) <= 1e-6


def test_the_weights_depend_neither_on_scale_nor_on_place():
    thetas = random_trajectory(small_network(), 9)
    c = observed(thetas, Learnt()).coefficients()
    for scale in (1e-6, 1e6):
        np.testing.assert_allclose(observed(scale * thetas, Learnt()).coefficients(), c, rtol=1e-9)
    # Powers of two, for the differences to be exactly the same.
    coarse = np.round(thetas * 2**20) / 2**20
    assert (
        observed(coarse + 8, Learnt()).coefficients() == observed(coarse, Learnt()).coefficients()
    )


def test_float32_models_are_averaged_in_float64():
    model = convolutional()
    thetas = random_trajectory(model, 7).astype(np.float32).astype(np.float64)
    average = observed(thetas, Learnt(), model)
    c, expected = rna(thetas, 1e-5)
    assert relative_error(average.coefficients(), c) <= 1e-11
    average.copy_to(model)
    np.testing.assert_array_equal(flat(model), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_kept_in_float32(dtype):
    model = small_network().to(dtype)
    thetas = random_trajectory(model, 5)
    average = observed(thetas, Learnt(), model)
    assert {s.dtype for s in average.state_dict()["snapshots"]} == {torch.float32}
    rounded = torch.tensor(thetas).to(dtype).double().numpy()
    average.copy_to(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert relative_error(flat(model), rna(rounded, 1e-5)[1]) <= torch.finfo(dtype).eps


def test_parameters_of_several_types_are_kept_in_the_widest(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4).to(torch.bfloat16), nn.Linear(4, 2).double())
    thetas = random_trajectory(model, 4)
    rounded = thetas.copy()
    rounded[:, :16] = torch.tensor(thetas[:, :16]).to(torch.bfloat16).double().numpy()
    for weights in (Learnt(), Learnt(folder=tmp_path)):
        average = observed(thetas, weights, model)
        assert average.storage(3)[0] == 4 * 26 * 8
        average.copy_to(model)
        assert [p.dtype for p in model.parameters()] == [torch.bfloat16] * 2 + [torch.float64] * 2
        assert relative_error(flat(model)[16:], rna(rounded, 1e-5)[1][16:]) <= 1e-12


def test_a_new_window_forgets_the_one_before():
    model = small_network()
    thetas = random_trajectory(model, 9)
    average = observed(thetas[:4], Learnt(), model)
    average.copy_to(model)
    start = flat(model)
    average.start(model, 5)
    assert (average.window, average.n_averaged, average.coefficients()) == (5, 0, [])
    for theta in thetas[4:]:
        overwrite(model, theta)
        average.observe(model)
    c, expected = rna(np.array([start, *thetas[4:]]), 1e-5)
    assert relative_error(average.coefficients(), c) <= 1e-9
    assert relative_error(result(average), expected) <= 1e-9


# The authors' module would differ on some of these: it returns the last weights for fewer than
# three of them, and it turns to least squares only where elimination meets a pivot of exactly 0.
@pytest.mark.parametrize(
    ("steps", "expected", "solved_by"),
    [
        ([1, 1, 1], [1 / 3] * 3, "least squares"),
        ([1, 2], [1 / 3, 2 / 3], "least squares"),  # z is the part of 1 along (1, 2)
        ([0.1, 0.3, 0.7], np.array([1, 3, 7]) / 11, "least squares"),
        ([1, -1, 2], [0.5, -0.5, 1], "least squares"),
        ([1, 0], [1, 0], "least squares"),
        ([0], [1], "uniform"),
        ([0, 0, 0], [1 / 3] * 3, "uniform"),
        ([1, -1], [0.5, 0.5], "uniform"),  # Σz = 0
        ([1, -2, 1], [1 / 3] * 3, "uniform"),
        ([np.nan, 1], [0.5, 0.5], "uniform"),
        ([1e200, 1], [0.5, 0.5], "uniform"),  # whose square is not finite
    ],
)
def test_singular_systems_without_regularisation_are_told_and_harmless(steps, expected, solved_by):
    direction = np.random.default_rng(1).normal(size=26)
    thetas = np.outer(np.cumsum([0, *steps]), direction)
    average = observed(thetas, Learnt(rho=0))
    np.testing.assert_allclose(average.coefficients(), expected, rtol=1e-9, atol=1e-12)
    assert average.notes == {"condition": None, "solved_by": solved_by}
    np.testing.assert_allclose(result(average), expected @ thetas[1:], rtol=1e-9, atol=1e-12)


def test_more_epochs_than_parameters_are_singular_without_regularisation_alone():
    model = small_network()
    thetas = random_trajectory(model, 35)
    unregularised = observed(thetas, Learnt(rho=0))
    assert unregularised.notes == {"condition": None, "solved_by": "least squares"}
    assert sum(unregularised.coefficients()) == pytest.approx(1)
    regularised = observed(thetas, Learnt())
    assert regularised.notes["solved_by"] == "solve"
    assert relative_error(regularised.coefficients(), rna(thetas, 1e-5)[0]) <= 1e-8


def test_replacing_the_weights_keeps_buffers_and_the_parameters_themselves(tmp_path):
    model = convolutional()
    thetas = random_trajectory(model, 3)
    for weights in (Learnt(), Learnt(folder=tmp_path)):
        average = observed(thetas, weights, model)
        model[1].running_mean.fill_(7)
        model[1].num_batches_tracked.fill_(7)
        model[2].bias.requires_grad_(requires_grad=False)
        buffers = copy.deepcopy(list(model.buffers()))
        before = [(p.data_ptr(), p.stride(), p.dtype, p.requires_grad) for p in model.parameters()]
        average.copy_to(model)
        assert relative_error(flat(model), rna(thetas, 1e-5)[1]) <= 1e-5
        after = [(p.data_ptr(), p.stride(), p.dtype, p.requires_grad) for p in model.parameters()]
        assert after == before
        for buffer, expected in zip(model.buffers(), buffers, strict=True):
            assert torch.equal(buffer, expected)


def test_buffers_count_for_nothing():
    model = convolutional()
    thetas = random_trajectory(model, 4)
    plain = observed(thetas, Learnt(), model).coefficients()
    average = opened(model, thetas[0], Learnt(), 3)
    for value, theta in enumerate(thetas[1:]):
        model[1].running_var.fill_(100 * value)
        model[1].num_batches_tracked.fill_(391 * value)
        overwrite(model, theta)
        average.observe(model)
    assert average.coefficients() == plain


@pytest.mark.parametrize("make", [small_network, lambda: nn.Linear(5, 1, bias=False).double()])
def test_training_on_in_place_changes_nothing(make):
    model = make()
    thetas = random_trajectory(model, 4)
    average = opened(model, thetas[0], Learnt(), 3)
    overwrite(model, thetas[0] + 100)
    for theta in thetas[1:]:
        overwrite(model, theta)
        average.observe(model)
        overwrite(model, theta + 100)
    c, expected = rna(thetas, 1e-5)
    assert relative_error(average.coefficients(), c) <= 1e-9
    for _ in range(2):  # nor do the weights it replaced
        assert relative_error(result(average, model), expected) <= 1e-9
        average.copy_to(model)
        overwrite(model, flat(model) + 100)


def test_wrapped_models_are_read_and_written_as_the_raw_one():
    model = small_network()
    wrapper = nn.DataParallel(model)
    thetas = random_trajectory(model, 4)
    overwrite(model, thetas[0])
    average = LearntAverage(wrapper, Learnt())
    average.start(wrapper, 3)
    for theta in thetas[1:]:
        overwrite(model, theta)
        average.observe(wrapper)
    average.copy_to(wrapper)
    assert relative_error(flat(model), rna(thetas, 1e-5)[1]) <= 1e-9


def test_observing_outside_an_open_window_is_refused():
    model = small_network()
    thetas = random_trajectory(model, 2)
    average = LearntAverage(model, Learnt())
    with pytest.raises(RuntimeError, match=r"window of 0 epochs is full: call start\(\)"):
        average.observe(model)
    average = observed(thetas, Learnt(), model)
    with pytest.raises(RuntimeError, match="window of 1 epochs is full"):
        average.observe(model)
    np.testing.assert_allclose(result(average), thetas[1], rtol=1e-14)


def test_replacing_before_anything_was_observed_is_refused():
    model = small_network()
    average = LearntAverage(model, Learnt())
    for _ in range(2):  # in a second window as in the first
        average.start(model, 1)
        with pytest.raises(RuntimeError, match=r"observe\(\)"):
            average.copy_to(model)
        average.observe(model)


@pytest.mark.parametrize("epochs", [0, -3])
def test_a_window_without_epochs_is_refused(epochs):
    with pytest.raises(ValueError, match=f"epochs={epochs} must be positive"):
        LearntAverage(small_network(), Learnt()).start(small_network(), epochs)


def test_another_network_is_refused():
    average = observed(random_trajectory(small_network(), 3), Learnt())
    average.window = 9
    for other in (nn.Linear(25, 1).double(), nn.Sequential(small_network(), nn.Linear(1, 1))):
        with pytest.raises((ValueError, RuntimeError)):
            average.observe(other)
    assert average.n_averaged == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -1e-9}, "rho=-1e-09 must not be negative"),
        ({"rho": float("nan")}, "rho=nan must be finite"),
        ({"rho": float("inf")}, "rho=inf must be finite"),
        ({"window": 0}, "window=0 must be positive"),
        ({"window": -2}, "window=-2 must be positive"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Learnt(**settings)
