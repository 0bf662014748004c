"""The device, precision, determinism, threads and memory layout of a run."""

import os
from functools import cache

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from phaseavg.config import Execution, Settings
from phaseavg.errors import UserError

NARROWEST = 8  # channels per layer in NHWC on a CPU


def _available() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cuda"] * bool(gpus) + gpus + ["cpu"]


def pick_device(name: str, field: str = "execution.device") -> torch.device:
    """Return the device called `name`; for `auto` a GPU if there is one.

    Raises:
        UserError: if this machine has no such device.
    """
    names = _available()
    if name not in ("auto", *names):
        raise UserError(
            f"{field}={name}: there is no such device here; choices: auto, {', '.join(names)}"
        )
    return torch.device(names[0] if name == "auto" else name)


def prepare(settings: Settings) -> tuple[Settings, torch.device]:
    """Set torch's global switches; return the settings with `auto` resolved, and the device.

    Raises:
        UserError: if the device is missing or does not support an option.
    """
    device = pick_device(settings.execution.device)
    if device.type == "cuda":  # streams and graphs belong to the current device
        torch.cuda.set_device(device.index or 0)
    execution = decided(settings.execution, device)
    own = own_threads()  # before a run sets the number
    torch.set_num_threads(execution.threads or own)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(execution.deterministic, warn_only=True)
    # Filling new tensors only exposes reads of uninitialized memory, at the cost of time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not execution.deterministic
    torch.backends.cudnn.allow_tf32 = execution.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = execution.precision == "tf32"
    return settings.model_copy(update={"execution": execution}), device


def decided(execution: Execution, device: torch.device) -> Execution:
    """Return the execution with every `auto` but the device's resolved.

    Raises:
        UserError: if the device does not support an option.
    """
    changes: dict[str, object] = {}
    if execution.precision == "auto":
        changes["precision"] = "bf16" if has_bf16_units(device) else "fp32"
    if execution.graph == "auto":
        changes["graph"] = device.type == "cuda"
    elif execution.graph and device.type != "cuda":
        raise UserError(
            f"execution.graph=true: {device.type} has no CUDA graphs; choices: false, auto"
        )
    return execution.model_copy(update=changes)


def has_bf16_units(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 natively; on CPUs, with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = torch.cpu.get_capabilities()
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


@cache
def own_threads() -> int:
    """Return torch's default number of threads in this process; cached before a run sets it."""
    return torch.get_num_threads()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for forward passes; weights, statistics and averages stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def laid_out(model: nn.Module, execution: Execution, device: torch.device) -> nn.Module:
    """Return the model on its device, in the configured memory layout.

    Raises:
        UserError: if torch would corrupt memory in that layout.
    """
    if not execution.channels_last:
        return model.to(device)
    channels = [m.num_features for m in model.modules() if isinstance(m, _BatchNorm)]
    if device.type == "cpu" and min(channels, default=NARROWEST) < NARROWEST:
        # torch 2.15 with one thread, AVX2 and 4 channels: "corrupted double-linked list".
        raise UserError(
            f"execution.channels_last=true: on a CPU torch would corrupt memory, for a BatchNorm "
            f"layer has {min(channels)} channels, under {NARROWEST}; choices: false"
        )
    return model.to(device, memory_format=torch.channels_last)
