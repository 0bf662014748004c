"""Lookahead: interpolate slow weights towards the fast weights every k steps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lookahead(Optimizer):
    """Set φ ← φ + α (θ − φ) and θ ← φ after every k steps of an inner optimizer on θ.

    The model's parameters are the fast weights θ. The slow weights φ are initialised from θ and are
    the result of training: evaluate and save φ. The inner optimizer's momentum is unchanged.

    `state`, `param_groups` and `defaults` belong to the inner optimizer. `state[p]` has the
    `slow_weights` of a parameter after its first step; before, they equal the parameter. Each group
    has `lookahead_steps`, the number of steps since its last synchronisation.

    Source: Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, NeurIPS 2019.

    Args:
        inner: the optimizer of the fast weights.
        k: number of steps between synchronisations; positive.
        alpha: α, in [0, 1]; 1 is equivalent to the inner optimizer.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, inner: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k} must be a positive integer")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must lie in [0, 1]")
        self.inner = inner
        self.k = k
        self.alpha = alpha
        self._restarts = 0
        super().__setstate__({})  # creates the hooks; the base constructor is not called
        for group in self.param_groups:
            group.setdefault("lookahead_steps", 0)

    state = property(attrgetter("inner.state"))
    param_groups = property(attrgetter("inner.param_groups"))
    defaults = property(attrgetter("inner.defaults"))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer; its first synchronisation follows after k steps."""
        self.inner.add_param_group(param_group)
        self.param_groups[-1]["lookahead_steps"] = 0

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Step the inner optimizer, return its loss, and synchronise after every k-th step."""
        # Stored after the step, because inner optimizers initialise a parameter's empty state.
        starts = {
            p: p.detach().clone()
            for group in self.param_groups
            for p in group["params"]
            if (p.requires_grad or p.grad is not None)
            and "slow_weights" not in self.state.get(p, {})
        }
        loss = self.inner.step(closure)
        for p, start in starts.items():
            if self.state.get(p) or p.grad is not None:
                self.state[p]["slow_weights"] = start
        self.look_ahead()
        return loss

    def look_ahead(self) -> None:
        """Count a step of the inner optimizer, and synchronise after every k-th step.

        `step` calls this. Call it yourself only if the inner optimizer steps on its own, for
        example in a CUDA graph; a first `step` must have set the slow weights.
        """
        due = []
        for group in self.param_groups:
            group["lookahead_steps"] += 1
            if group["lookahead_steps"] >= self.k:
                group["lookahead_steps"] = 0
                due.append(group)
        pairs = zip(*self._weights(due), strict=True)
        if trained := [(fast, slow) for fast, slow in pairs if slow is not fast]:
            fast, slow = zip(*trained, strict=True)
            with torch.no_grad():
                torch._foreach_lerp_(slow, fast, self.alpha)  # exact for α = 0 and 1
                torch._foreach_lerp_(fast, slow, 1.0)

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Set the parameters to the slow weights within a `with` block.

        The fast weights are restored afterwards, unless the block calls `restart` or `finish`. Do
        not step or save a state in the block. BatchNorm statistics are not recomputed.
        """
        params, slow = self._weights(self.param_groups)
        fast = [p.detach().clone() for p in params]
        restarts = self._restarts
        _copy(slow, params)
        try:
            yield
        finally:
            if self._restarts == restarts:
                _copy(fast, params)

    def restart(self) -> None:
        """Set the slow weights to the parameters; the next synchronisation follows after k steps.

        Call this after other code, such as an averager, has changed the parameters.
        """
        _copy(*self._weights(self.param_groups))
        self._restarts += 1
        for group in self.param_groups:
            group["lookahead_steps"] = 0

    def finish(self) -> None:
        """Set the parameters to the slow weights, and restart the count of k steps."""
        with self.evaluation_weights():
            self.restart()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by load_state_dict, with tensors cast to the parameters' dtype and device.
        if not all("lookahead_steps" in group for group in state["param_groups"]):
            raise ValueError("state_dict: not a state of Lookahead; a group has no lookahead_steps")
        self.inner.__setstate__(state)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.inner, self.k, self.alpha)

    def _weights(self, groups: list[dict[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
        """Return fast and slow weights; before the first step both are the parameters."""
        fast = [p for group in groups for p in group["params"]]
        return fast, [self.state.get(p, {}).get("slow_weights", p) for p in fast]


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)  # _foreach_copy_ does not support the parameters of fully_shard
