"""Final weights as safetensors; of tied weights one is written."""

import os
import tempfile
from pathlib import Path

import safetensors
from safetensors.torch import load_model, save_model
from torch import nn

from phaseavg.errors import UserError


def write_weights(model: nn.Module, path: Path, run_id: str) -> int:
    """Write parameters and buffers to a file, which also names their run; return its bytes.

    Raises:
        UserError: if safetensors cannot hold them, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_model(model, str(temporary), {"run_id": run_id})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        return path.stat().st_size
    except Exception as error:  # safetensors raises many kinds
        temporary.unlink(missing_ok=True)
        reason = " ".join(str(error).split())
        raise UserError(
            f"save_weights=true: safetensors cannot write {path.name} ({reason})"
        ) from error


def require_writable(model: nn.Module) -> None:
    """Write a model's weights once, so that a run does not fail when it has ended.

    Raises:
        UserError: if safetensors cannot hold them.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_weights(model, Path(folder, "weights.safetensors"), "")


def load_weights(model: nn.Module, path: Path, run_id: str) -> None:
    """Load parameters and buffers into the model that they are of.

    Raises:
        UserError: if they are of another run or another network, or the file is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            owner = (file.metadata() or {}).get("run_id")
        if owner != run_id:
            raise UserError(f"{path}: is of another run, {owner}")
        load_model(model, path)
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: damaged, or of another network ({reason})") from error
