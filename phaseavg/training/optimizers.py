"""What a run asks of any optimizer: torch's, this project's or a user's."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.targets import build

# Lookahead trains other weights than those that count. An optimizer of that kind has the methods
# `evaluation_weights`, `restart` and `finish`, and, for its steps to be recorded as a CUDA graph,
# `inner` and `look_ahead`, as `phaseavg.optim.Lookahead` describes them.

HOW = ("foreach", "fused", "capturable")
"""Options of torch's optimizers that say how an update is computed, not which it is."""

AS_SET = "lr_as_set"
"""In a group whose `lr` is a tensor in float32: the number that it was set to."""


def new_optimizer(settings: Settings, model: nn.Module) -> Optimizer:
    """Return the run's optimizer over all parameters of `model`, in its first state."""
    params = list(model.parameters())
    return build("optimizer", settings.optimizer, Optimizer, offered={"params": params})


def evaluation_weights(optimizer: Optimizer) -> AbstractContextManager:
    """Return a context within which the network has the weights that count."""
    return getattr(optimizer, "evaluation_weights", nullcontext)()


def weights_replaced(optimizer: Optimizer) -> None:
    """Tell the optimizer that the weights are no longer those that it left."""
    if hasattr(optimizer, "restart"):
        optimizer.restart()


def finish(optimizer: Optimizer) -> None:
    """Leave the network with the weights that count."""
    if hasattr(optimizer, "finish"):
        optimizer.finish()


def load_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load what an optimizer of the same kind had saved, however that computed its updates."""
    groups = []
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        how = {name: own[name] for name in HOW if name in own}
        rate = float(group.get(AS_SET, group["lr"]))
        others = {name: value for name, value in group.items() if name != AS_SET}
        groups.append({**others, **how, "lr": rate})
    optimizer.load_state_dict({**saved, "param_groups": groups})
    # Fused updates want all of a weight in one memory layout, and saved tensors keep theirs.
    for parameter, state in recordable_part(optimizer).state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def make_recordable(optimizer: Optimizer, device: torch.device) -> None:
    """Keep an optimizer's rate and steps on the device, so that a CUDA graph can be recorded.

    Raises:
        UserError: if the optimizer has no such way of computing its updates.
    """
    inner = recordable_part(optimizer)
    for group in inner.param_groups:
        if not {"fused", "capturable"} & group.keys():
            raise UserError(
                f"execution.graph=true: {type(inner).__name__} is neither fused nor capturable; "
                "choices: false"
            )
        group.setdefault("initial_lr", group["lr"])
        rate = torch.tensor(float(group["lr"]), device=device)
        how = {"foreach": None, "fused": True, "capturable": True}
        group.update({name: value for name, value in how.items() if name in group}, lr=rate)
    for state in inner.state.values():
        if "step" in state:
            state["step"] = state["step"].to(device)


def recordable_part(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer whose steps are all alike; of Lookahead the inner one."""
    return getattr(optimizer, "inner", optimizer)


def after_replay(optimizer: Optimizer) -> None:
    """Do what of a step was not recorded."""
    if hasattr(optimizer, "look_ahead"):
        optimizer.look_ahead()


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the rate of every parameter group to its configured one times `factor`."""
    for group in optimizer.param_groups:
        rate = group.setdefault("initial_lr", group["lr"]) * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
            group[AS_SET] = rate
        else:
            group["lr"] = rate


def learning_rate(optimizer: Optimizer) -> float:
    """Return the rate of the first parameter group."""
    group = optimizer.param_groups[0]
    return float(group.get(AS_SET, group["lr"]))
