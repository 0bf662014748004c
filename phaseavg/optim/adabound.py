"""AdaBound: Adam whose elementwise learning rates are clamped between narrowing bounds."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class AdaBound(Optimizer):
    """Adam that converges to SGD with learning rate `final_lr`.

    With Adam's moving averages m of the gradient and v of its square, update t is::

        θ ← θ − clamp(lr · √(1 − β2^t) / (1 − β1^t) / (√v + eps), lower, upper) · m

        lower = f (1 − 1 / (γ t + 1)),  upper = f (1 + 1 / (γ t)),  f = final_lr · lr / base_lr

    `base_lr` is the initial `lr` of a parameter group, so a schedule of `lr` scales both bounds.
    The clamp includes the bias corrections; m itself is not corrected.

    Source: Luo et al., Adaptive Gradient Methods with Dynamic Bound of Learning Rate, ICLR 2019,
    and the authors' code (Luolc/AdaBound). This class follows the code; the paper's Algorithm 1
    has no bias corrections and divides by √t.

    Args:
        params: parameters or parameter groups.
        lr: learning rate of Adam; positive.
        betas: β1 and β2, the decay rates of m and v; both in [0, 1).
        final_lr: limit of both bounds, the learning rate of SGD; positive.
        gamma: γ, the convergence rate of the bounds; positive.
        eps: term added to √v; not negative.
        weight_decay: L2 penalty, added to the gradient; not negative.
        capturable: store step counts and compute learning rates on the parameters' device, so that
            a CUDA graph can capture a step. `lr` may then be a tensor on this device.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "final_lr": final_lr,
            "gamma": gamma,
            "eps": eps,
            "weight_decay": weight_decay,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its `lr` becomes its `base_lr`.

        Raises:
            ValueError: if an option is out of range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        # Saved in the state dict, because the loading optimizer may start from a decayed `lr`.
        group = self.param_groups[-1]
        group["base_lr"] = float(group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient; return the loss of `closure`, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                states = [self._parameter_state(p, group["capturable"]) for p in params]
                _update(params, states, group)
        return loss

    def _parameter_state(self, parameter: Tensor, capturable: bool) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            device = parameter.device if capturable else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _check(group: dict[str, Any]) -> None:
    for name in ("lr", "final_lr", "gamma"):
        if not group[name] > 0:
            raise ValueError(f"{name}={group[name]} must be positive")
    for name in ("eps", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"{name}={group[name]} must not be negative")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas={group['betas']} must lie in [0, 1)")


def _update(params: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    beta1, beta2 = group["betas"]
    m = [state["exp_avg"] for state in states]
    v = [state["exp_avg_sq"] for state in states]
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    if group["capturable"]:
        stacked = _rate_and_bounds(torch.stack(steps).double(), torch.sqrt, group)
        rate, lower, upper = (values.unbind() for values in stacked)
    else:
        per_parameter = [_rate_and_bounds(step.item(), math.sqrt, group) for step in steps]
        rate, lower, upper = zip(*per_parameter, strict=True)

    gradients = tuple(p.grad for p in params if p.grad is not None)
    if group["weight_decay"]:
        gradients = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
    torch._foreach_lerp_(m, gradients, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, gradients, gradients, value=1 - beta2)
    rates = torch._foreach_sqrt(v)
    torch._foreach_add_(rates, group["eps"])
    torch._foreach_reciprocal_(rates)
    torch._foreach_mul_(rates, rate)
    torch._foreach_clamp_min_(rates, lower)
    torch._foreach_clamp_max_(rates, upper)
    torch._foreach_addcmul_(params, rates, m, value=-1)


def _rate_and_bounds(
    t: Any, sqrt: Callable[[Any], Any], group: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """Return Adam's bias-corrected learning rate at update t, before division by √v, and bounds."""
    beta1, beta2 = group["betas"]
    rate = group["lr"] * sqrt(1 - beta2**t) / (1 - beta1**t)
    final = group["final_lr"] * group["lr"] / group["base_lr"]
    lower = final * (1 - 1 / (group["gamma"] * t + 1))
    upper = final * (1 + 1 / (group["gamma"] * t))
    return rate, lower, upper
