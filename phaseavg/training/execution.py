"""Where and how a run is carried out."""

import os
from functools import cache

import torch

from phaseavg.errors import UserError


def _available() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cuda"] * bool(gpus) + gpus + ["mps"] * torch.backends.mps.is_available() + ["cpu"]


def pick_device(name: str, field: str = "execution.device") -> torch.device:
    """Return the device called `name`; for `auto` the first of cuda, mps and cpu that is there.

    Raises:
        UserError: if it is not a device, or not one of this machine's.
    """
    names = _available()
    if name not in ("auto", *names):
        raise UserError(
            f"{field}={name}: there is no such device here; choices: auto, {', '.join(names)}"
        )
    return torch.device(names[0] if name == "auto" else name)


def make_deterministic() -> None:
    """Ask torch for deterministic algorithms, and for float32 that is no TensorFloat-32.

    It warns where it has no deterministic one.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


@cache
def own_threads() -> int:
    """Return how many threads torch has in this process where a run asks for no number of them."""
    return torch.get_num_threads()


def set_threads(threads: int | None) -> None:
    """Give torch so many threads, or as many as it had before any run of this process."""
    own = own_threads()  # before the first run changes it
    torch.set_num_threads(threads or own)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of forward passes; weights, statistics and averages stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
