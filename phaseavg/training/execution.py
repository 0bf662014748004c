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
    return ["cuda"] * bool(gpus) + gpus + ["mps"] * torch.backends.mps.is_available() + ["cpu"]


def pick_device(name: str, field: str = "execution.device") -> torch.device:
    """Return the device called `name`; for `auto` the first available of cuda, mps and cpu.

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
    """Resolve the execution's `auto` values and set torch's global switches.

    Returns:
        The settings, with every `auto` but the device's resolved, and the device.

    Raises:
        UserError: if the device is missing or does not support an option.
    """
    device = pick_device(settings.execution.device)
    if device.type == "cuda":  # streams and graphs belong to the current device
        torch.cuda.set_device(device.index or 0)
    execution = decided(settings.execution, device)
    _set_threads(execution.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(execution.deterministic, warn_only=True)
    # Filling new tensors only exposes reads of uninitialized memory, at the cost of time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not execution.deterministic
    torch.backends.cudnn.allow_tf32 = execution.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = execution.precision == "tf32"
    if execution.precision == "bf16" and device.type == "cpu" and not has_bf16_units(device):
        print(
            "execution.precision=bf16: this CPU has neither AVX512-BF16 nor AMX; where torch "
            "emulates bf16, training takes up to 17 times as long as in fp32",
            flush=True,
        )
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
    units = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


@cache
def own_threads() -> int:
    """Return torch's default number of threads in this process; cached before a run sets it."""
    return torch.get_num_threads()


def _set_threads(threads: int | None) -> None:
    """Set torch's number of threads; by default the process's own."""
    own = own_threads()  # call it first, so that it caches the number before a run sets it
    torch.set_num_threads(threads or own)


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
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    narrowest = min((layer.num_features for layer in layers), default=NARROWEST)
    if device.type == "cpu" and narrowest < NARROWEST:
        # torch 2.15 with one thread, AVX2 and 4 channels: "corrupted double-linked list".
        raise UserError(
            f"execution.channels_last=true: on a CPU every BatchNorm layer needs at least "
            f"{NARROWEST} channels, and one has {narrowest}: torch would corrupt memory; "
            "choices: false"
        )
    return model.to(device, memory_format=torch.channels_last)
