"""The device, precision, determinism, threads and memory layout of a run."""

import os
from functools import cache

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from phaseavg import processes
from phaseavg.config import NO_TRACKING, Execution, Settings
from phaseavg.errors import UserError

MIN_CHANNELS = 8  # of a BatchNorm layer in channels_last layout on a CPU


def _available() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cuda"] * bool(gpus) + gpus + ["cpu"]


def pick_device(name: str) -> torch.device:
    """Return the device `execution.device`; for `auto`, a GPU if available.

    Raises:
        UserError: if this machine has no such device.
    """
    names = _available()
    if name not in ("auto", *names):
        raise UserError(
            f"execution.device={name}: not available on this machine; choices: auto, "
            f"{', '.join(names)}"
        )
    return torch.device(names[0] if name == "auto" else name)


def own_device(name: str) -> torch.device:
    """Return this process's device: of several processes, each uses a GPU of its own.

    Raises:
        UserError: if this machine has no such device, or fewer GPUs than processes.
    """
    device = pick_device(name)
    if processes.count() == 1 or device.type == "cpu":
        return device
    if device.index is not None:
        raise UserError(
            f"execution.device={name}: {processes.count()} processes cannot share one device; "
            "choices: auto, cuda, cpu"
        )
    gpus = torch.cuda.device_count()
    if processes.local_count() > gpus:
        raise UserError(
            f"torchrun --nproc-per-node={processes.local_count()}: this machine has {gpus} GPU(s); "
            "start at most one process per GPU"
        )
    return torch.device("cuda", processes.local_rank())


def prepare(settings: Settings) -> tuple[Settings, torch.device]:
    """Set torch's global flags; return the settings with `auto` resolved, and the device.

    Of several processes, only the first tracks metrics.

    Raises:
        UserError: if the device is missing or does not support an option.
    """
    device = own_device(settings.execution.device)
    if device.type == "cuda":  # streams and graphs are created on the current device
        torch.cuda.set_device(device.index or 0)
    execution = resolve_auto(settings.execution, device)
    default_threads()  # caches the default before a run changes the number
    torch.set_num_threads(execution.threads or default_threads())
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(execution.deterministic, warn_only=True)
    # Filling new tensors is slow and only serves to detect reads of uninitialized memory.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not execution.deterministic
    torch.backends.cudnn.allow_tf32 = execution.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = execution.precision == "tf32"
    changes: dict[str, object] = {"execution": execution}
    if processes.rank():
        changes["tracking"] = NO_TRACKING
    return settings.model_copy(update=changes), device


def resolve_auto(execution: Execution, device: torch.device) -> Execution:
    """Return the execution options with `auto` resolved in all but `device`.

    Raises:
        UserError: if the device does not support an option.
    """
    changes: dict[str, object] = {}
    if execution.precision == "auto":
        changes["precision"] = "bf16" if has_bf16_units(device) else "fp32"
    if processes.count() == 1:
        changes["sync_batchnorm"] = False
    elif execution.sync_batchnorm and device.type == "cpu":
        raise UserError(
            "execution.sync_batchnorm=true: torch synchronises BatchNorm on GPUs only; choices: "
            "false"
        )
    if execution.graph is True and processes.count() > 1:
        raise UserError("execution.graph=true: needs a single process; choices: false, auto")
    if execution.graph == "auto":
        changes["graph"] = device.type == "cuda" and processes.count() == 1
    elif execution.graph and device.type != "cuda":
        raise UserError(
            f"execution.graph=true: {device.type} has no CUDA graphs; choices: false, auto"
        )
    return execution.model_copy(update=changes)


def has_bf16_units(device: torch.device) -> bool:
    """Return whether the device supports bf16 natively; a CPU needs AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = torch.cpu.get_capabilities()
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


@cache
def default_threads() -> int:
    """Return torch's default number of threads; `prepare` caches it before a run changes it."""
    return torch.get_num_threads()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context for forward passes; weights, statistics and averages stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def apply_layout(model: nn.Module, execution: Execution, device: torch.device) -> nn.Module:
    """Move the model to its device and the configured memory layout.

    Raises:
        UserError: if torch would corrupt memory in that layout.
    """
    if not execution.channels_last:
        return model.to(device)
    channels = [m.num_features for m in model.modules() if isinstance(m, _BatchNorm)]
    if device.type == "cpu" and min(channels, default=MIN_CHANNELS) < MIN_CHANNELS:
        # torch 2.15 with one thread, AVX2 and 4 channels: "corrupted double-linked list".
        raise UserError(
            f"execution.channels_last=true: on a CPU, BatchNorm layers need {MIN_CHANNELS} "
            f"channels and the smallest has {min(channels)}; choices: false"
        )
    return model.to(device, memory_format=torch.channels_last)
