"""Snapshots of learnt weights, in memory and in files: saved, damaged, failing, and how large."""

import copy
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from learnt_windows import convolutional, observed, opened, result
from reference import flat, overwrite, random_trajectory, relative_error, rna, small_network
from torch import nn

from phaseavg.averaging.learnt import Learnt, LearntAverage
from phaseavg.averaging.snapshots import FileStore, checksum_matches


@pytest.mark.parametrize("K", [None, 3])
@pytest.mark.parametrize("make", [small_network, convolutional])
def test_where_the_snapshots_are_kept_changes_no_bit(make, K, tmp_path):  # noqa: N803
    model = make()
    thetas = random_trajectory(model, 8)
    in_memory = opened(model, thetas[0], Learnt(window=K), 7)
    on_disk = opened(model, thetas[0], Learnt(window=K, folder=tmp_path), 7)
    for theta in thetas[1:]:
        overwrite(model, theta)
        for average in (in_memory, on_disk):
            average.observe(model)
        assert torch.equal(in_memory.state_dict()["gram"], on_disk.state_dict()["gram"])
        assert in_memory.coefficients() == on_disk.coefficients()
        assert in_memory.notes == on_disk.notes
        np.testing.assert_array_equal(result(in_memory, model), result(on_disk, model))
    assert in_memory.files() == []
    assert len(on_disk.files()) == (8 if K is None else K + 1)


def loaded(state):
    """Return a state as it comes back from a checkpoint."""
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    return torch.load(saved, weights_only=True)


@pytest.mark.parametrize("forms", ["memory", "files", "memory to files"])
@pytest.mark.parametrize("K", [None, 2])
def test_a_state_restored_after_any_epoch_continues_exactly(forms, K, tmp_path):  # noqa: N803
    model, epochs = convolutional(), 5
    thetas = random_trajectory(model, epochs + 1)
    before = Learnt(window=K, folder=tmp_path if forms == "files" else None)
    after = Learnt(window=K, folder=None if forms == "memory" else tmp_path)
    unbroken = observed(thetas, before, model)
    for done in range(epochs + 1):
        broken = opened(model, thetas[0], before, epochs)
        for theta in thetas[1 : done + 1]:
            overwrite(model, theta)
            broken.observe(model)
        restored = LearntAverage(convolutional(), after)  # it was never told of the window
        restored.load_state_dict(loaded(broken.state_dict()))
        assert (restored.window, restored.n_averaged) == (epochs, done)
        assert restored.coefficients() == broken.coefficients()
        kept = range(max(0, done - K) if K else 0, done + 1)
        names = [] if forms == "memory" else [f"snapshot-{t:04d}-" for t in kept]
        assert [path.name[:14] for path in restored.files()] == names
        for theta in thetas[done + 1 :]:
            overwrite(model, theta)
            restored.observe(model)
        assert torch.equal(restored.state_dict()["gram"], unbroken.state_dict()["gram"])
        assert restored.coefficients() == unbroken.coefficients()
        np.testing.assert_array_equal(result(restored, model), result(unbroken, model))
        assert all(checksum_matches(path) for path in restored.files())
        with pytest.raises(RuntimeError, match="window of 5 epochs is full"):
            restored.observe(model)


def test_a_state_from_before_any_window_is_one_too(tmp_path):
    for folder in (None, tmp_path):
        fresh = LearntAverage(small_network(), Learnt(folder=folder))
        average = observed(random_trajectory(small_network(), 3), Learnt(folder=folder))
        average.load_state_dict(loaded(fresh.state_dict()))
        assert (average.window, average.n_averaged, average.files()) == (0, 0, [])


def test_a_state_of_files_is_refused_without_a_folder(tmp_path):
    thetas = random_trajectory(small_network(), 4)
    state = observed(thetas, Learnt(folder=tmp_path)).state_dict()
    assert all(name == Path(name).name for name in state["snapshots"])  # a folder may be moved
    average = observed(thetas[:3] + 1, Learnt())
    before = result(average)
    with pytest.raises(ValueError, match=r"are files .*in memory: name the folder") as caught:
        average.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert (average.window, average.n_averaged) == (2, 2)
    np.testing.assert_array_equal(result(average), before)


def test_a_state_stays_what_it_was_while_the_average_goes_on():
    model = small_network()
    thetas = random_trajectory(model, 6)
    average = opened(model, thetas[0], Learnt(window=2), 5)
    for theta in thetas[1:4]:
        overwrite(model, theta)
        average.observe(model)
    state, saved = average.state_dict(), loaded(average.state_dict())
    for theta in thetas[4:]:
        overwrite(model, theta)
        average.observe(model)
    assert torch.equal(state["gram"], saved["gram"])
    assert all(
        torch.equal(a, b) for a, b in zip(state["snapshots"], saved["snapshots"], strict=True)
    )


def test_files_are_written_once_and_tell_when_they_are_damaged(tmp_path):
    model, folder = small_network(), tmp_path / "runs" / "snapshots"
    thetas = random_trajectory(model, 6)
    average = opened(model, thetas[0], Learnt(window=2, folder=folder), 5)
    assert not folder.exists()  # the start has not been used yet
    seen = {}
    for theta in thetas[1:]:
        for path in folder.glob("*"):
            seen.setdefault(path, (path.stat().st_mtime_ns, path.read_bytes()))
        overwrite(model, theta)
        average.observe(model)
    for path, (written, content) in seen.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == (written, content)
    names = sorted(path.name for path in folder.iterdir())  # those out of the window too
    assert [name[:14] for name in names] == [f"snapshot-{t:04d}-" for t in range(6)]
    assert [path.name for path in average.files()] == names[3:]
    for name, theta in zip(names, thetas, strict=True):
        np.testing.assert_array_equal(np.fromfile(folder / name), theta)
        assert checksum_matches(folder / name)
    path = folder / names[-1]
    content = path.read_bytes()
    for damaged in (content[:9] + bytes([content[9] ^ 1]) + content[10:], content[:-8], b""):
        path.write_bytes(damaged)
        assert not checksum_matches(path)
    with pytest.raises(OSError, match="shorter"):
        average.copy_to(model)
    path.unlink()
    assert not checksum_matches(path)
    with pytest.raises(FileNotFoundError):
        average.copy_to(model)
    np.testing.assert_array_equal(flat(model), thetas[-1])


def test_a_failing_write_leaves_the_average_and_the_folder_as_they_were(tmp_path, monkeypatch):
    model = small_network()
    thetas = random_trajectory(model, 4)
    average = opened(model, thetas[0], Learnt(folder=tmp_path), 3)
    in_memory = observed(thetas[:2], Learnt()).state_dict()
    overwrite(model, thetas[1])
    average.observe(model)
    before, files, coefficients = result(average), set(tmp_path.iterdir()), average.coefficients()

    def full(_):
        raise OSError(28, "No space left on device")

    overwrite(model, thetas[2])
    for act in (lambda: average.observe(model), lambda: average.load_state_dict(in_memory)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                act()
        assert set(tmp_path.iterdir()) == files
        assert (average.window, average.n_averaged) == (3, 1)
        assert average.coefficients() == coefficients
        np.testing.assert_array_equal(result(average), before)
    for theta in thetas[2:]:
        overwrite(model, theta)
        average.observe(model)
    assert relative_error(result(average), rna(thetas, 1e-5)[1]) <= 1e-9


def test_a_start_that_could_not_be_written_is_not_lost(tmp_path, monkeypatch):
    model = small_network()
    thetas = random_trajectory(model, 3)
    average = opened(model, thetas[0], Learnt(folder=tmp_path), 2)
    overwrite(model, thetas[1])

    def full(_):
        raise OSError(28, "No space left on device")

    for act in (lambda: average.observe(model), average.state_dict, average.files):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                act()
        assert not list(tmp_path.iterdir())
    for theta in thetas[1:]:
        overwrite(model, theta)
        average.observe(model)
    assert relative_error(result(average), rna(thetas, 1e-5)[1]) <= 1e-9


@pytest.mark.parametrize("in_files", [False, True])
def test_a_start_can_be_saved_before_the_first_epoch(tmp_path, in_files):
    model = small_network()
    thetas = random_trajectory(model, 3)
    folder = tmp_path if in_files else None
    saved = opened(model, thetas[0], Learnt(folder=folder), 2).state_dict()
    average = LearntAverage(model, Learnt(folder=folder))
    average.start(model, 9)  # which the state does away with
    average.load_state_dict(saved)
    for theta in thetas[1:]:
        overwrite(model, theta)
        average.observe(model)
    assert relative_error(result(average), rna(thetas, 1e-5)[1]) <= 1e-9


def test_two_that_write_the_same_files_do_not_disturb_each_other(tmp_path):
    vectors = random_trajectory(small_network(), 20)

    def write(_):
        store = FileStore(tmp_path, torch.float64)
        return [store.put(torch.from_numpy(vector), t) for t, vector in enumerate(vectors)]

    with ThreadPoolExecutor(4) as pool:
        names, *others = pool.map(write, range(4))
    assert all(other == names for other in others)
    assert all(checksum_matches(tmp_path / name) for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_state_whose_files_are_damaged_is_refused(tmp_path):
    model = small_network()
    thetas = random_trajectory(model, 4)
    average = observed(thetas, Learnt(folder=tmp_path), model)
    state, first = average.state_dict(), average.files()[0]
    before = result(average)
    content = first.read_bytes()
    for damaged in (b"x" + content[1:], None):
        first.unlink()
        if damaged is not None:
            first.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{first} is missing or damaged"):
            average.load_state_dict(state)
    first.write_bytes(content)
    average.load_state_dict(state)
    np.testing.assert_array_equal(result(average), before)


@pytest.mark.parametrize("in_files", [False, True])
def test_a_closed_window_has_its_coefficients_and_nothing_else(tmp_path, in_files):
    model = small_network()
    thetas = random_trajectory(model, 4)
    average = observed(thetas, Learnt(folder=tmp_path if in_files else None), model)
    coefficients, notes = average.coefficients(), average.notes
    average.close()
    restored = LearntAverage(model, average.weights)
    restored.load_state_dict(average.state_dict())
    for closed in (average, restored):
        assert (closed.coefficients(), closed.notes) == (coefficients, notes)
        assert closed.files() == []
        assert closed.state_dict()["snapshots"] == []
        with pytest.raises(RuntimeError, match="the window was closed"):
            closed.copy_to(model)
        with pytest.raises(RuntimeError, match="window of 3 epochs is full"):
            closed.observe(model)
        closed.start(model, 1)
        closed.observe(model)
        assert closed.coefficients() == [1.0]


def test_an_unreadable_snapshot_leaves_the_average_as_it_was(tmp_path):
    model = small_network()
    thetas = random_trajectory(model, 4)
    average = observed(thetas[:3], Learnt(folder=tmp_path), model)
    average.window = 3
    hidden = average.files()[0].rename(tmp_path / "hidden")
    with pytest.raises(FileNotFoundError):
        average.observe(model)
    hidden.rename(average.files()[0])
    overwrite(model, thetas[3])
    average.observe(model)
    assert relative_error(average.coefficients(), rna(thetas, 1e-5)[0]) <= 1e-9


def test_the_storage_of_a_window_is_told_beforehand(tmp_path):
    model = small_network()
    snapshot = 26 * 8
    assert LearntAverage(model, Learnt()).storage(80) == (81 * snapshot, "cpu")
    assert LearntAverage(model, Learnt(window=10), "meta").storage(80) == (11 * snapshot, "meta")
    assert LearntAverage(model, Learnt(window=10)).storage(4) == (5 * snapshot, "cpu")
    on_disk = LearntAverage(model, Learnt(folder=tmp_path))
    assert on_disk.storage(80) == (81 * snapshot, f"files in {tmp_path}")
    thetas = random_trajectory(model, 5)
    average = observed(thetas, Learnt(window=2, folder=tmp_path))
    assert sum(path.stat().st_size for path in average.files()) == average.storage(4)[0]


@pytest.mark.parametrize(("epochs", "K"), [(12, None), (80, None), (1000, None), (1000, 20)])
def test_pieces_of_all_snapshots_take_the_memory_of_one(epochs, K):  # noqa: N803
    model = nn.Linear(4432, 1000, bias=False, device="meta")
    average = LearntAverage(model, Learnt(window=K), "meta")
    average.start(model, epochs)
    pieces = list(average._pieces())
    assert [first for first, _ in pieces] == [0, *(last for _, last in pieces[:-1])]
    assert pieces[-1][1] == 4_432_000
    longest = max(last - first for first, last in pieces)
    assert 2**10 <= longest <= 2**16
    # Of every snapshot, and of every difference, in float64.
    assert 2 * (min(epochs, K or epochs) + 1) * longest * 8 <= 4 * 4_432_000


PEAK = """
import sys
import torch
from torch import nn
from phaseavg.averaging.learnt import Learnt, LearntAverage

def memory(which):
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith(which)).split()[1])

def grown(size, folder):
    model = nn.Linear(size, 1000, bias=False)
    before = memory("VmRSS")
    average = LearntAverage(model, Learnt(folder=folder))
    average.start(model, 10)
    for _ in range(10):
        with torch.no_grad():
            model.weight.add_(torch.randn(1000, 1))
        average.observe(model)
    average.copy_to(model)
    return memory("VmHWM") - before

torch.set_num_threads(1)
grown(1, None)  # loads what the libraries load at first use
print(grown(2000, sys.argv[1]), grown(2000, None))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_with_files_the_memory_stays_below_three_snapshots(tmp_path):
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    command = [sys.executable, "-c", PEAK, tmp_path]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    files, memory = (int(grown) / (4 * 2_000_000) for grown in process.stdout.split())
    assert files < 3
    assert memory > 11  # so the measurement sees what there is


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_memory_does_not_grow_by_the_snapshots_and_their_place_changes_no_bit(tmp_path):
    model = nn.Linear(1024, 1024, bias=False)
    thetas = random_trajectory(model, 5)
    model.cuda()
    averages = [
        LearntAverage(model, Learnt()),
        LearntAverage(model, Learnt(folder=tmp_path)),
        LearntAverage(model, Learnt(), "cuda"),
    ]
    results = []
    for average in averages:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        overwrite(model, thetas[0])
        average.start(model, 4)
        for theta in thetas[1:]:
            overwrite(model, theta)
            average.observe(model)
        average.copy_to(model)
        if average is not averages[2]:
            assert torch.cuda.memory_allocated() - before < 16 * 2**20  # cuBLAS's workspace
            # Of 4 MB of weights: 8 MB that `overwrite` takes, or pieces.
            assert torch.cuda.max_memory_allocated() - before < 32 * 2**20
        results.append(copy.deepcopy(model).cpu())
    for average, weights in zip(averages, results, strict=True):
        assert average.coefficients() == averages[0].coefficients()
        np.testing.assert_array_equal(flat(weights), flat(results[0]))
