"""Save and load final weights as safetensors; tied weights are saved once."""

from pathlib import Path

import safetensors
from safetensors.torch import load_model, save_model
from torch import nn

from phaseavg.atomic import replacing
from phaseavg.errors import UserError, describe
from phaseavg.processes import on_first


@on_first
def write_weights(model: nn.Module, path: Path, run_id: str) -> int:
    """Write parameters, buffers and the run id to a file; return its size in bytes.

    Raises:
        UserError: if the file cannot be written, or safetensors cannot store the weights.
    """
    try:
        with replacing(path) as temporary:
            save_model(model, str(temporary), {"run_id": run_id})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"runs_dir={path.parent.parent}: cannot write {path.parent.name}/{path.name} ({error})"
            "; free disk space or set another folder, and rerun the same command to resume"
        ) from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"save_weights=true: safetensors cannot store the weights ({describe(error)}); rerun "
            "without it to keep the result"
        ) from error
    return path.stat().st_size


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
