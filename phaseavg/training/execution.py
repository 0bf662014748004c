"""Where and how a run is carried out."""

import ctypes
import os
from functools import cache

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from phaseavg.config import Execution, Settings
from phaseavg.errors import UserError

NARROWEST = 8  # channels


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


def prepare(settings: Settings) -> tuple[Settings, torch.device]:
    """Decide what the execution leaves open, and set torch's switches as the run asks for them.

    Returns:
        Settings in which nothing of the execution but the device's name is left open; the device.

    Raises:
        UserError: if the device is not there, or cannot do what is asked of it.
    """
    device = pick_device(settings.execution.device)
    if device.type == "cuda":  # streams, and with them graphs, are made on the current one
        torch.cuda.set_device(device.index or 0)
    execution = decided(settings.execution, device)
    _set_threads(execution.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    ask_for_determinism(execution)
    # It would fill all new memory, to show up programs that read it before they write.
    torch.utils.deterministic.fill_uninitialized_memory = False
    keep_freed_memory(device.type == "cpu")
    torch.backends.cudnn.allow_tf32 = execution.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = execution.precision == "tf32"
    if execution.precision == "bf16" and device.type == "cpu" and not _has_bf16_units():
        print(
            "execution.precision=bf16: this CPU has no bf16 units and emulates them, which takes "
            "ten times as long as fp32 and more",
            flush=True,
        )
    return settings.model_copy(update={"execution": execution}), device


def ask_for_determinism(execution: Execution) -> None:
    """Ask torch for deterministic algorithms, or for any; it warns where it has none."""
    if execution.compile:
        torch.use_deterministic_algorithms(execution.deterministic, warn_only=True)
    else:  # the same, without importing torch.compile, which takes seconds
        torch.set_deterministic_debug_mode("warn" if execution.deterministic else "default")
    torch.backends.cudnn.benchmark = not execution.deterministic


def keep_freed_memory(keep: bool) -> None:
    """Have the C library keep what a step frees for the next one, or give it back as it does.

    What was given back comes again page by page, each to be cleared by the system. Only glibc can
    be told; elsewhere nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1  # their numbers in malloc.h
        # Its own come to this in training, for they grow with what is freed.
        mallopt(mmap_threshold, 1 << 30 if keep else 1 << 25)
        mallopt(trim_threshold, (1 << 31) - 1 if keep else 1 << 26)


def decided(execution: Execution, device: torch.device) -> Execution:
    """Return an execution in which nothing is left open but the device's name.

    Raises:
        UserError: if the device cannot do what is asked of it.
    """
    changes: dict[str, object] = {}
    if execution.precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        changes["precision"] = "bf16" if fast else "fp32"
    if execution.graph == "auto":
        changes["graph"] = device.type == "cuda"
    elif execution.graph and device.type != "cuda":
        raise UserError(
            f"execution.graph=true: {device.type} has no CUDA graphs; choices: false, auto"
        )
    return execution.model_copy(update=changes)


@cache
def own_threads() -> int:
    """Return how many threads torch has in this process where a run asks for no number of them."""
    return torch.get_num_threads()


def _set_threads(threads: int | None) -> None:
    """Give torch so many threads, or as many as it had before any run of this process."""
    own = own_threads()  # before the first run changes it
    torch.set_num_threads(threads or own)


def _has_bf16_units() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of forward passes; weights, statistics and averages stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def laid_out(model: nn.Module, execution: Execution, device: torch.device) -> nn.Module:
    """Return the network on its device, in the memory layout that is asked for.

    Raises:
        UserError: if torch would crash in that layout.
    """
    if not execution.channels_last:
        return model.to(device)
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    narrowest = min((layer.num_features for layer in layers), default=NARROWEST)
    if device.type == "cpu" and narrowest < NARROWEST:
        # Seen with torch 2.15, one thread, AVX2 and 4 channels: "corrupted double-linked list".
        raise UserError(
            f"execution.channels_last=true: torch on CPUs overwrites memory where layers have "
            f"under {NARROWEST} channels, and here one has {narrowest}; choices: false"
        )
    return model.to(device, memory_format=torch.channels_last)
