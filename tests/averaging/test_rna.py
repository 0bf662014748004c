"""Regularised nonlinear acceleration: coefficients and snapshot files."""

import copy
import io
import json
import os
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from reference import flat, overwrite, random_trajectory, relative_error, rna, small_network
from torch import nn

from phaseavg.averaging import RNA, AtEnd, Phasewise, RNAAverage
from phaseavg.averaging.rna import CHUNK, solve
from phaseavg.averaging.snapshots import is_intact


@pytest.fixture
def observed(tmp_path):
    """Return a function that feeds a phase of weight vectors, initial weights first."""

    def run(thetas, model=None, epochs=None, **settings):
        model = model or small_network()
        overwrite(model, thetas[0])
        averager = Phasewise(model, [epochs or len(thetas) - 1], RNA(tmp_path, **settings))
        for theta in thetas[1:]:
            overwrite(model, theta)
            averager.epoch_end(model)
        return averager

    return run


def result(averager, like=None):
    return flat(averager.averaged(like or small_network()))


def convolutional():
    """Return a float32 channels_last network with BatchNorm that spans several chunks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 100, 3), nn.BatchNorm2d(100), nn.Conv2d(100, 90, 3))
    assert sum(p.numel() for p in model.parameters()) > CHUNK
    return model.to(memory_format=torch.channels_last)


def regression_trajectory(epochs):
    """Return the initial weights and the weights after each epoch of ten SGD steps."""
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
@pytest.mark.parametrize("K", [None, 1, 5, 40])
@pytest.mark.parametrize("rho", [0.0, 1e-5, 10.0])
@pytest.mark.parametrize("trajectory", ["random", "trained"])
def test_average_matches_the_reference_at_every_epoch(trajectory, rho, K, tmp_path):  # noqa: N803
    model, epochs = small_network(), 12
    random = random_trajectory(model, epochs + 1)
    thetas = {"random": random, "trained": regression_trajectory(epochs)}[trajectory]
    overwrite(model, thetas[0])
    averager = Phasewise(model, [epochs], RNA(tmp_path, rho, K))
    for t in range(1, epochs + 1):
        overwrite(model, thetas[t])
        averager.epoch_end(model)
        c, expected = rna(thetas[: t + 1], rho, K)
        actual, notes = averager.coefficients(), averager.average.notes
        R = np.diff(thetas[max(0, t - (K or t)) : t + 1], axis=0).T  # noqa: N806
        G = R.T @ R / np.linalg.norm(R.T @ R, 2)  # noqa: N806
        condition = pytest.approx(np.linalg.cond(G + rho * np.eye(len(G))), rel=1e-6)
        assert notes == {"condition": condition, "solved_by": "solve"}
        assert notes["condition"] < 1e9  # needed for the tolerances below
        tolerance = 1e-14 * notes["condition"] + 1e-13
        assert len(actual) == t
        assert actual[: t - len(c)] == [0.0] * (t - len(c))
        assert relative_error(actual[t - len(c) :], c) <= tolerance
        assert relative_error(result(averager), expected) <= tolerance
        assert sum(actual) == pytest.approx(1, abs=1e-12 * max(1, np.abs(c).max()))
        json.dumps(notes, allow_nan=False)


def test_coefficients_may_be_negative_and_belong_to_the_newer_points(observed):
    # By hand: θ = 0, 1, 1.5 has R = [1, ½], and with ρ = 0 and two orthogonal coordinates
    # G = diag(1, ¼) gives z ∝ (1, 4): c = (0.2, 0.8).
    thetas = np.zeros((3, 26))
    thetas[1:, 0] = 1
    thetas[2, 1] = 0.5
    averager = observed(thetas, rho=0)
    np.testing.assert_allclose(averager.coefficients(), [0.2, 0.8], rtol=1e-14)
    np.testing.assert_allclose(result(averager)[:2], [1, 0.4], rtol=1e-14)
    assert averager.average.notes == {"condition": pytest.approx(4), "solved_by": "solve"}
    # Two steps in one direction, the second shorter: the average goes beyond the last weights.
    thetas[2] = 0
    thetas[2, 0] = 1.5
    thetas[1:, 2] = 1e-3
    assert observed(thetas, rho=0).coefficients()[0] < -0.5


def test_an_observer_starts_from_weights_set_by_another_averager(tmp_path):
    # Other code sets the weights to 7 at the end of the first phase.
    thetas = random_trajectory(small_network(), 4)
    model = small_network()
    observer = Phasewise(model, [2, 2], RNA(tmp_path))
    for epoch, theta in enumerate(thetas):
        overwrite(model, theta)
        assert not observer.epoch_end(model, replace=False)
        np.testing.assert_array_equal(flat(model), theta)
        if epoch == 1:
            overwrite(model, np.full(26, 7.0))
        observer.restart(model)
    expected = rna(np.array([np.full(26, 7.0), *thetas[2:]]), 1e-5)[0]
    assert relative_error(observer.coefficients(), expected) <= 1e-9


def test_large_networks_are_averaged_in_float64_and_buffers_are_ignored(tmp_path):
    model = convolutional()
    thetas = random_trajectory(model, 7).astype(np.float32).astype(np.float64)
    overwrite(model, thetas[0])
    averager = Phasewise(model, [6], RNA(tmp_path))
    before = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    for value, theta in enumerate(thetas[1:], start=1):
        overwrite(model, theta)
        model[1].running_var.fill_(100 * value)
        model[1].num_batches_tracked.fill_(391 * value)
        averager.epoch_end(model)
    c, expected = rna(thetas, 1e-5)
    assert relative_error(averager.coefficients(), c) <= 1e-11
    np.testing.assert_array_equal(flat(model), expected.astype(np.float32))
    assert model[1].running_var.unique().tolist() == [600]
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == before


# The authors' module would differ on some of these: it returns the last weights for fewer than
# three of them, and it turns to least squares only where elimination meets a pivot of exactly 0.
@pytest.mark.parametrize(
    ("steps", "expected", "solved_by"),
    [
        ([1, 2], [1 / 3, 2 / 3], "least squares"),  # z is the part of 1 along (1, 2)
        ([1, -1, 2], [0.5, -0.5, 1], "least squares"),
        ([1, 0], [1, 0], "least squares"),
        ([0, 0, 0], [1 / 3] * 3, "uniform"),
        ([1, -1], [0.5, 0.5], "uniform"),  # Σz = 0
        ([np.nan, 1], [0.5, 0.5], "uniform"),
        ([1e200, 1], [0.5, 0.5], "uniform"),  # whose square is not finite
    ],
)
def test_notes_report_singular_systems_without_regularisation(observed, steps, expected, solved_by):
    direction = np.random.default_rng(1).normal(size=26)
    thetas = np.outer(np.cumsum([0, *steps]), direction)
    averager = observed(thetas, rho=0)
    np.testing.assert_allclose(averager.coefficients(), expected, rtol=1e-9, atol=1e-12)
    assert averager.average.notes == {"condition": None, "solved_by": solved_by}
    np.testing.assert_allclose(result(averager), expected @ thetas[1:], rtol=1e-9, atol=1e-12)


def test_only_floating_point_parameters_are_averaged(tmp_path):
    model = nn.Linear(2, 2, bias=False).double()
    model.counts = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    averager = Phasewise(model, [1], RNA(tmp_path))
    model.counts.fill_(5)
    averager.epoch_end(model)
    assert model.counts.tolist() == [5, 5]
    model.waves = nn.Parameter(torch.tensor([1j]))
    with pytest.raises(ValueError, match="weights=RNA: complex or sharded parameters are not"):
        Phasewise(model, [1], RNA(tmp_path))


@pytest.mark.parametrize("K", [None, 2])
@pytest.mark.parametrize("done", range(7))
def test_a_state_restored_after_any_epoch_continues_exactly(done, K, tmp_path):  # noqa: N803
    thetas = random_trajectory(small_network(), 6)

    def run(averager, model, thetas):
        for theta in thetas:
            overwrite(model, flat(model) + theta)
            averager.epoch_end(model)
        return flat(model)

    def fresh():
        model = small_network()
        overwrite(model, np.ones(26))
        return AtEnd(model, [4, 2], RNA(tmp_path, window=K), window="phase"), model

    expected = run(*fresh(), thetas)
    averager, model = fresh()
    run(averager, model, thetas[:done])
    saved = io.BytesIO()
    torch.save(averager.state_dict(), saved)
    saved.seek(0)
    state, theta = averager.state_dict(), flat(model)
    files = averager.average.files()
    np.testing.assert_array_equal(run(averager, model, thetas[done:]), expected)
    for states in (state, torch.load(saved, weights_only=True)):  # neither has changed meanwhile
        restored = AtEnd(small_network(), [4, 2], RNA(tmp_path, window=K), window="phase")
        restored.load_state_dict(states)
        assert restored.average.files() == files
        overwrite(model, theta)
        np.testing.assert_array_equal(run(restored, model, thetas[done:]), expected)
    assert all(is_intact(path) for path in restored.average.files())


def test_snapshots_are_written_once_and_damage_is_detected(tmp_path):
    model, folder = small_network(), tmp_path / "runs" / "snapshots"
    thetas = random_trajectory(model, 6)
    overwrite(model, thetas[0])
    averager = Phasewise(model, [5], RNA(folder, window=2))
    assert not folder.exists()  # θ_0 has not been used yet
    seen = {}
    for theta in thetas[1:]:
        for path in folder.glob("*"):
            seen.setdefault(path, (path.stat().st_mtime_ns, path.read_bytes()))
        overwrite(model, theta)
        averager.epoch_end(model)
    for path, (written, content) in seen.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (written, content)
    names = sorted(path.name for path in folder.iterdir())  # includes epochs outside the window
    assert [name[:14] for name in names] == [f"snapshot-{t:04d}-" for t in range(6)]
    assert [path.name for path in averager.average.files()] == names[3:]
    for name, theta in zip(names, thetas, strict=True):
        model.load_state_dict(torch.load(folder / name, weights_only=True))
        np.testing.assert_array_equal(flat(model), theta)
        assert is_intact(folder / name)
    state, path = averager.state_dict(), folder / names[-1]
    content = path.read_bytes()
    changed = content[:-99] + bytes([content[-99] ^ 1]) + content[-98:]
    for damaged in (changed, content[:-8], b"", None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert not is_intact(path)
        with pytest.raises(ValueError, match=f"{path} is missing or damaged"):
            averager.load_state_dict(state)


def test_update_before_start_raises(tmp_path):
    with pytest.raises(RuntimeError, match=r"call start\(\) before the first update of a window"):
        RNAAverage(small_network(), RNA(tmp_path)).update(small_network(), 1, 2)


def test_a_failed_write_leaves_average_and_folder_unchanged(tmp_path, monkeypatch):
    model = small_network()
    thetas = random_trajectory(model, 4)
    overwrite(model, thetas[0])
    averager = Phasewise(model, [3], RNA(tmp_path))
    full = Mock(side_effect=OSError(28, "No space left on device"))
    for t, theta in enumerate(thetas[1:]):
        overwrite(model, theta)
        coefficients, files = averager.coefficients(), set(tmp_path.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=r"No space left on device: '.*snapshot-"):
                averager.epoch_end(model)
        assert set(tmp_path.iterdir()) == files
        assert (averager.observed[0], averager.coefficients()) == (t, coefficients)
        averager.epoch_end(model)
    assert relative_error(flat(model), rna(thetas, 1e-5)[1]) <= 1e-9


def test_frozen_parameters_are_neither_stored_nor_changed(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(requires_grad=False)
    averager = Phasewise(model, [2], RNA(tmp_path), trainable_only=True)
    frozen = copy.deepcopy(model[0].state_dict())
    for change in (1, 2):
        overwrite(model[1], flat(model[1]) + change)
        averager.epoch_end(model)
    assert set(torch.load(next(tmp_path.glob("*.pt")))) == {"1.weight", "1.bias"}
    assert all(torch.equal(frozen[name], t) for name, t in model[0].state_dict().items())


def test_one_epoch_without_movement_is_its_own_average():
    coefficients, notes = solve(torch.zeros(1, 1, dtype=torch.float64), 1e-5)
    assert (coefficients.tolist(), notes["solved_by"]) == ([1.0], "uniform")
