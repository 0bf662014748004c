"""Final weights as safetensors; of tied weights one is written."""

import os
import tempfile
from pathlib import Path

import safetensors
from safetensors.torch import load_model, save_model
from torch import nn

from phaseavg.errors import UserError, describe


def write_weights(model: nn.Module, path: Path, run_id: str) -> int:
    """Write parameters and buffers to a file, which also names their run; return its bytes.

    Raises:
        UserError: if the file cannot be written, or safetensors cannot hold the weights.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_model(model, str(temporary), {"run_id": run_id})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"runs_dir={path.parent.parent}: {path.parent.name}/{path.name} could not be written "
            f"({error}); make room or name another folder, and rerun the same command to resume"
        ) from error
    except (KeyError, ValueError, RuntimeError) as error:  # it has no format for some tensors
        raise UserError(
            f"save_weights=true: safetensors cannot hold the weights ({describe(error)})"
        ) from error
    return path.stat().st_size


def require_writable(model: nn.Module) -> None:
    """Write the weights into a temporary folder, so that no run fails when it has ended.

    Raises:
        UserError: if they cannot be written.
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
        raise UserError(f"{path}: damaged, or of another network ({describe(error)})") from error
