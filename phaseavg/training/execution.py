"""Where and how a run is carried out."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

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


def make_deterministic(compiled: bool = False) -> None:
    """Ask torch for deterministic algorithms, and for float32 that is no TensorFloat-32.

    It warns where it has no deterministic one.

    Args:
        compiled: whether torch.compile is asked, too.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if compiled:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:  # the same, without importing torch.compile, which takes seconds
        torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False


def leave_compiler_out() -> None:
    """Let torch's optimizers work without importing torch.compile, which takes seconds.

    Some of their methods are wrapped in functions that import it, only to tell it where a graph has
    to end. While an optimizer is not itself compiled, and here only networks are, nothing depends
    on that, also not in later runs of the process that are compiled. A version of torch without
    such wrappers is left as it is.
    """
    for name, method in list(vars(Optimizer).items()):
        if _imports_compiler(method):
            setattr(Optimizer, name, method.__wrapped__)
    for kind in list(vars(torch.optim).values()):
        if isinstance(kind, type) and issubclass(kind, Optimizer) and _imports_compiler(kind.step):
            kind.step = _with_grad_as_configured(kind.step.__wrapped__)


def _imports_compiler(method: Any) -> bool:
    """Return whether a method is wrapped in a function that imports torch.compile."""
    wrapper = inspect.isfunction(method) and hasattr(method, "__wrapped__")
    return wrapper and "torch._dynamo" in method.__code__.co_names


def _with_grad_as_configured(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return `step` as torch wraps it, but for the ends of graphs."""

    @functools.wraps(step)
    def wrapped(self: Optimizer, *arguments: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **named)

    return wrapped


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of forward passes; weights, statistics and averages stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
