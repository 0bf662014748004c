"""torch.compile: how it is asked for, and how a run without it does without importing it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from phaseavg.config import Execution

MODES = {True: "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""What `execution.compile` stands for; CUDA graphs are `execution.graph`'s."""


def compiled(model: torch.nn.Module, execution: Execution) -> Callable[[Tensor], Tensor]:
    """Return the forward pass in training: the network's own, or compiled as is asked for."""
    if not execution.compile:
        return model
    # Batches have two sizes, for each of which there is a graph; one for both would be slower.
    return torch.compile(model, mode=MODES[execution.compile], dynamic=False)


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
