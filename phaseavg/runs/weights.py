"""Save and load final weights as safetensors; tied weights are saved once."""

import os
import tempfile
from pathlib import Path

import safetensors
from safetensors.torch import load_model, save_model
from torch import nn

from phaseavg.errors import UserError, describe


def write_weights(model: nn.Module, path: Path, run_id: str) -> int:
    """Write parameters, buffers and the run id to a file; return its size in bytes.

    Raises:
        UserError: if the file cannot be written, or safetensors cannot store the weights.
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
            f"runs_dir={path.parent.parent}: cannot write {path.parent.name}/{path.name} ({error})"
            "; free disk space or set another folder, and rerun the same command to resume"
        ) from error
    except (KeyError, ValueError, RuntimeError) as error:  # some tensors are not supported
        raise UserError(
            f"save_weights=true: safetensors cannot store the weights ({describe(error)})"
        ) from error
    return path.stat().st_size


def require_writable(model: nn.Module) -> None:
    """Save the weights to a temporary folder, so that errors occur before training.

    Raises:
        UserError: if the weights cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_weights(model, Path(folder, "weights.safetensors"), "")


def load_weights(model: nn.Module, path: Path, run_id: str) -> None:
    """Load parameters and buffers into a model.

    Raises:
        UserError: if the run id or the network does not match, or the file is damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            owner = (file.metadata() or {}).get("run_id")
        if owner != run_id:
            raise UserError(f"{path}: belongs to another run, {owner}")
        load_model(model, path)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"{path}: damaged, or another network's ({describe(error)})") from error
