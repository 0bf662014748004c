"""What a run asks of an optimizer, whoever's it is."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.optim import Optimizer

from phaseavg.config import Settings, build
from phaseavg.training.execution import leave_compiler_out

# Lookahead trains other weights than those that count. An optimizer of that kind has the methods
# `evaluation_weights`, `restart` and `finish`, as `phaseavg.optim.Lookahead` describes them.


def new_optimizer(settings: Settings, model: nn.Module) -> Optimizer:
    """Return the run's optimizer over all parameters of `model`, in its first state."""
    if not settings.execution.compile:
        leave_compiler_out()
    params = list(model.parameters())
    return build("optimizer", settings.optimizer, Optimizer, offered={"params": params})


def evaluation_weights(optimizer: Optimizer) -> AbstractContextManager:
    """Return a context within which the network has the weights that count."""
    own = getattr(optimizer, "evaluation_weights", nullcontext)
    return own()


def weights_replaced(optimizer: Optimizer) -> None:
    """Tell the optimizer that the weights are no longer those that it left."""
    if hasattr(optimizer, "restart"):
        optimizer.restart()


def finish(optimizer: Optimizer) -> None:
    """Leave the network with the weights that count."""
    if hasattr(optimizer, "finish"):
        optimizer.finish()


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the rate of every parameter group to its configured one times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def learning_rate(optimizer: Optimizer) -> float:
    """Return the rate of the first parameter group."""
    return float(optimizer.param_groups[0]["lr"])
