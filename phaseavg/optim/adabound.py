"""AdaBound: Adam whose rates, element by element, are clamped into narrowing bounds."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class AdaBound(Optimizer):
    """Adam that turns into SGD with rate `final_lr`.

    With Adam's averages m and v of the gradient and its square, update t is::

        θ ← θ − clamp(lr · √(1 − β2^t) / (1 − β1^t) / (√v + eps), lower, upper) · m

        lower = f (1 − 1 / (γ t + 1)),  upper = f (1 + 1 / (γ t)),  f = final_lr · lr / base_lr

    `base_lr` is the `lr` that a parameter group was added with: a decay of `lr` shrinks both
    bounds. The bias corrections are clamped with the rest, so m itself is never corrected.

    Source: Luo et al., Adaptive Gradient Methods with Dynamic Bound of Learning Rate, ICLR 2019, as
    in their code (Luolc/AdaBound); Algorithm 1 there has no bias corrections and divides by √t.

    Args:
        params: parameters or groups of them, as torch's optimizers take them.
        lr: the rate of Adam; positive.
        betas: β1 and β2, the decays of m and v; both in [0, 1).
        final_lr: the rate that the bounds close on; positive.
        gamma: γ, how fast they close; positive.
        eps: added to √v; not negative.
        weight_decay: L2 penalty, added to the gradient; not negative.
        amsbound: take the largest v so far, as AMSGrad does.
        foreach: update all parameters of a group at once; None for where all are on CUDA.
        maximize: ascend instead of descending.
        capturable: count the updates, and compute rate and bounds, on the parameters' device, so
            that a CUDA graph may hold the step; all parameters are then updated at once, and `lr`
            may have become a tensor there, which is only read.

    Raises:
        ValueError: if a value is out of its range.
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
        amsbound: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "final_lr": final_lr,
            "gamma": gamma,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsbound": amsbound,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("capturable", False)  # states from before there was one

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its `lr` of this moment becomes its `base_lr`.

        Raises:
            ValueError: if a value is out of its range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        # In the group, and so in the state: an optimizer that loads it may have been made with a
        # rate that had already decayed.
        group = self.param_groups[-1]
        group["base_lr"] = group["lr"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient; return the loss of `closure`, if given.

        Raises:
            RuntimeError: if a parameter is complex or a gradient sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [self._state_of(p, group) for p in params]
            foreach = group["foreach"]
            if foreach is None:
                foreach = all(p.is_cuda for p in params)
            at_once = foreach or group["capturable"]
            update = _update_at_once if at_once else _update_one_by_one
            update(group, params, states)
        return loss

    def _state_of(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        if parameter.is_complex():
            raise RuntimeError("AdaBound does not take complex parameters")
        if parameter.grad.is_sparse:
            raise RuntimeError("AdaBound does not take sparse gradients")
        state = self.state[parameter]
        if not state:
            # Else on the CPU, wherever the parameter is, for math.sqrt; loading leaves it so.
            home = parameter.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=home)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            if group["amsbound"]:
                state["max_exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _check(group: dict[str, Any]) -> None:
    if isinstance(group["lr"], Tensor):  # base_lr would be the same tensor, and decay with it
        raise ValueError(f"lr={group['lr']} must be a number, not a tensor")
    for name in ("lr", "final_lr", "gamma"):
        if not group[name] > 0:
            raise ValueError(f"{name}={group[name]} must be positive")
    for name in ("eps", "weight_decay"):
        if not group[name] >= 0:
            raise ValueError(f"{name}={group[name]} must not be negative")
    if not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"betas={group['betas']} must lie in [0, 1)")


def _rates(group: dict[str, Any], step: Tensor) -> tuple[float, float, float]:
    """Return the bias-corrected rate of update t, yet to be divided by √v, and its two bounds."""
    t, (beta1, beta2) = step.item(), group["betas"]
    rate = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    final = group["final_lr"] * group["lr"] / group["base_lr"]
    lower = final * (1 - 1 / (group["gamma"] * t + 1))
    upper = final * (1 + 1 / (group["gamma"] * t))
    return rate, lower, upper


def _rates_on_device(group: dict[str, Any], steps: list[Tensor]) -> tuple[list[Tensor], ...]:
    """Return what `_rates` does of each update, as scalars on the device of the counts."""
    t, (beta1, beta2) = torch.stack(steps).double(), group["betas"]
    rate = group["lr"] * (1 - beta2**t).sqrt() / (1 - beta1**t)
    final = group["final_lr"] * group["lr"] / group["base_lr"]
    lower = final * (1 - 1 / (group["gamma"] * t + 1))
    upper = final * (1 + 1 / (group["gamma"] * t))
    return rate.unbind(), lower.unbind(), upper.unbind()


def _update_one_by_one(
    group: dict[str, Any], params: list[Tensor], states: list[dict[str, Tensor]]
) -> None:
    """Update each parameter by itself: the plain version of `_update_at_once`."""
    beta1, beta2 = group["betas"]
    for p, state in zip(params, states, strict=True):
        m, v = state["exp_avg"], state["exp_avg_sq"]
        state["step"] += 1
        rate, lower, upper = _rates(group, state["step"])

        gradient = -p.grad if group["maximize"] else p.grad
        if group["weight_decay"]:
            gradient = gradient.add(p, alpha=group["weight_decay"])
        m.lerp_(gradient, 1 - beta1)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if group["amsbound"]:
            largest = state["max_exp_avg_sq"]
            v = torch.maximum(largest, v, out=largest)
        rates = v.sqrt().add_(group["eps"]).reciprocal_().mul_(rate)
        rates.clamp_min_(lower).clamp_max_(upper)
        p.addcmul_(rates, m, value=-1)


def _update_at_once(
    group: dict[str, Any], params: list[Tensor], states: list[dict[str, Tensor]]
) -> None:
    """Make the operations of `_update_one_by_one`, each on all parameters at once."""
    beta1, beta2 = group["betas"]
    m = [state["exp_avg"] for state in states]
    v = [state["exp_avg_sq"] for state in states]
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    if group["capturable"]:
        rate, lower, upper = _rates_on_device(group, steps)
    else:
        rate, lower, upper = zip(*(_rates(group, step) for step in steps), strict=True)

    gradients = [p.grad for p in params]
    if group["maximize"]:
        gradients = torch._foreach_neg(gradients)
    if group["weight_decay"]:
        gradients = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
    torch._foreach_lerp_(m, gradients, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, gradients, gradients, value=1 - beta2)
    if group["amsbound"]:
        largest = [state["max_exp_avg_sq"] for state in states]
        torch._foreach_maximum_(largest, v)
        v = largest
    rates = torch._foreach_sqrt(v)
    torch._foreach_add_(rates, group["eps"])
    torch._foreach_reciprocal_(rates)
    torch._foreach_mul_(rates, rate)
    torch._foreach_clamp_min_(rates, lower)
    torch._foreach_clamp_max_(rates, upper)
    torch._foreach_addcmul_(params, rates, m, value=-1)
