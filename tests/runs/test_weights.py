"""Final weights are saved and loaded; errors are reported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from phaseavg.errors import UserError
from phaseavg.runs import weights
from phaseavg.runs.weights import load_weights, write_weights


def test_loaded_weights_equal_the_saved_weights(tmp_path: Path) -> None:
    model, other = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    path = tmp_path / "weights.safetensors"
    assert write_weights(model, path, "a") == path.stat().st_size
    load_weights(other, path, "a")
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_another_run_or_network_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    write_weights(nn.Linear(2, 3), path, "a")
    with pytest.raises(UserError, match="belongs to another run, a"):
        load_weights(nn.Linear(2, 3), path, "b")
    with pytest.raises(UserError, match="damaged, or another network's"):
        load_weights(nn.Linear(2, 4), path, "a")


def test_a_full_disk_is_reported_and_the_old_file_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "weights.safetensors"
    path.write_text("old")

    def full(model: nn.Module, name: str, about: Any) -> None:
        Path(name).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_model", full)
    with pytest.raises(UserError, match=r"cannot write run/weights.safetensors .*No space"):
        write_weights(nn.Linear(1, 1), path, "a")
    assert path.read_text() == "old"
    assert list(folder.iterdir()) == [path]
