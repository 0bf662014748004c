"""Where and how a run is carried out."""

import os

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from phaseavg.config import Execution, Settings
from phaseavg.errors import UserError

COMPILE_MODES = {True: "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""What `execution.compile` stands for; the graphs are `execution.graph`'s."""

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


def settled(settings: Settings) -> tuple[Settings, torch.device]:
    """Return settings in which nothing of the execution is left open, and the run's device.

    Raises:
        UserError: if the device is not there, or cannot do what is asked of it.
    """
    execution = settings.execution
    device = pick_device(execution.device)
    changes: dict[str, object] = {}
    if execution.precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        changes["precision"] = "bf16" if fast else "fp32"
    if execution.graph == "auto":
        changes["graph"] = device.type == "cuda"
    execution = execution.model_copy(update=changes)
    if execution.graph and device.type != "cuda":
        raise UserError(
            f"execution.graph=true: {device.type} has no CUDA graphs; choices: false, auto"
        )
    return settings.model_copy(update={"execution": execution}), device


def apply(execution: Execution, device: torch.device) -> None:
    """Set torch's switches as a run asks for them; it may not be the process's first run.

    Deterministic algorithms are asked for: torch warns where it has none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(execution.deterministic, warn_only=True)
    # It would fill all new memory, to show up programs that read it before they write.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not execution.deterministic
    torch.backends.cudnn.allow_tf32 = execution.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = execution.precision == "tf32"
    if execution.precision == "bf16" and device.type == "cpu" and not _has_bf16_units():
        print(
            "execution.precision=bf16: this CPU has no bf16 units and emulates them, which takes "
            "ten times as long as fp32 and more",
            flush=True,
        )


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
