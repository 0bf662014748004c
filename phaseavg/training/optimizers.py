"""Operations on any optimizer: torch's, this project's or a user's."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.targets import build, signature

# Lookahead trains fast weights, but its slow weights are evaluated. Such an optimizer has the
# methods `evaluation_weights`, `restart` and `finish`. To support CUDA graphs it also has `inner`
# and `look_ahead`. `phaseavg.optim.Lookahead` documents them.

IMPLEMENTATION = ("foreach", "fused", "capturable")
"""Options of torch's optimizers that select an implementation of the same update."""


def new_optimizer(settings: Settings, model: nn.Module) -> Optimizer:
    """Return the run's optimizer over all parameters of `model`, in its initial state.

    Raises:
        UserError: if its step needs a closure.
    """
    params = list(model.parameters())
    optimizer = build("optimizer", settings.optimizer, Optimizer, offered={"params": params})
    try:
        signature(optimizer.step).bind()
    except TypeError as error:
        target = settings.optimizer["_target_"]
        raise UserError(
            f"optimizer={target}: its step needs a closure; choose another optimizer"
        ) from error
    return optimizer


def evaluation_weights(optimizer: Optimizer) -> AbstractContextManager:
    """Return a context in which the network has its evaluation weights."""
    return getattr(optimizer, "evaluation_weights", nullcontext)()


def weights_replaced(optimizer: Optimizer) -> None:
    """Notify the optimizer that the weights have been replaced."""
    if hasattr(optimizer, "restart"):
        optimizer.restart()


def finish(optimizer: Optimizer) -> None:
    """Leave the network with its evaluation weights."""
    if hasattr(optimizer, "finish"):
        optimizer.finish()


def load_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load the state of an optimizer of the same class, whichever implementation it used."""
    groups = []
    for group, current in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        options = {name: current[name] for name in IMPLEMENTATION if name in current}
        groups.append({**group, **options, "lr": float(group["lr"])})
    optimizer.load_state_dict({**saved, "param_groups": groups})
    # Fused updates need the state in the memory layout of its parameter; loading does not convert.
    for parameter, state in base_optimizer(optimizer).state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Move learning rates and step counts to the device, so that a CUDA graph can be captured.

    Raises:
        UserError: if the optimizer has no fused or capturable implementation.
    """
    inner = base_optimizer(optimizer)
    for group in inner.param_groups:
        if not {"fused", "capturable"} & group.keys():
            raise UserError(
                f"execution.graph=true: {type(inner).__name__} has no fused or capturable "
                "implementation; choices: false"
            )
        group.setdefault("initial_lr", group["lr"])
        rate = torch.tensor(float(group["lr"]), device=device)
        options = {"foreach": None, "fused": True, "capturable": True}
        group.update({name: value for name, value in options.items() if name in group}, lr=rate)
    for state in inner.state.values():
        if "step" in state:
            state["step"] = state["step"].to(device)


def base_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the inner optimizer of Lookahead, and any other optimizer itself."""
    return getattr(optimizer, "inner", optimizer)


def after_replay(optimizer: Optimizer) -> None:
    """Run the part of a step that the CUDA graph does not contain: `look_ahead`, if any."""
    if hasattr(optimizer, "look_ahead"):
        optimizer.look_ahead()


def learning_rates(optimizer: Optimizer, factor: float) -> list[float]:
    """Return `factor` times the configured learning rate of each parameter group."""
    groups = optimizer.param_groups
    return [group.setdefault("initial_lr", group["lr"]) * factor for group in groups]


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of each parameter group to `factor` times its configured rate."""
    rates = learning_rates(optimizer, factor)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
