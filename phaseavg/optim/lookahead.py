"""Lookahead: slow weights that every k steps go part of the way of an inner optimizer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTA = ("momentum_buffer", "exp_avg")
"""What an inner optimizer's state calls its momentum: that of SGD; of Adam and its kin."""

OURS = ("slow_weights", "slow_momentum")
"""What is added to the inner optimizer's state of every parameter."""


class Lookahead(Optimizer):
    """φ ← φ + α (θ − φ), θ ← φ after every k steps of an inner optimizer on θ.

    θ are the parameters, the fast weights; φ are the slow weights, at first a copy of them. The
    inner optimizer owns the parameter groups and its own state. `state_dict()` holds the slow
    weights beside that state, and in every group the steps since its last synchronisation.

    Source: Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, NeurIPS 2019.

    Args:
        inner: the optimizer of the fast weights.
        k: steps from one synchronisation to the next; positive.
        alpha: α, the part of the way that φ goes, in [0, 1]; with 1 the inner optimizer is alone.
        momentum: what a synchronisation does with the momentum of the inner optimizer (for Adam and
            its kin the first moment): `keep` it; `reset` it to zero; or `pullback`: interpolate it
            as the weights are, from a slow momentum that starts at zero.

    Raises:
        ValueError: if a value is out of its range, or `inner` is a Lookahead itself.
    """

    def __init__(
        self,
        inner: Optimizer,
        k: int = 5,
        alpha: float = 0.5,
        momentum: Literal["keep", "reset", "pullback"] = "keep",
    ) -> None:
        if isinstance(inner, Lookahead):
            raise ValueError("inner must be another optimizer than Lookahead")
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k={k} must be a positive integer")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must lie in [0, 1]")
        choices = ("keep", "reset", "pullback")
        if momentum not in choices:
            raise ValueError(f"momentum={momentum!r}; choices: {', '.join(choices)}")
        self.inner = inner
        self.k = k
        self.alpha = alpha
        self.momentum = momentum
        self._slow: dict[Tensor, dict[str, Tensor]] = {}
        self._restarts = 0  # for `evaluation_weights` to see that there was one
        # In place of the base class's constructor, which would set out with groups, state and
        # defaults of its own. What else that makes (hooks, and a step that calls them) is also
        # missing from an unpickled optimizer, and so made here.
        super().__setstate__({})
        for group in self.param_groups:
            self._open_window(group)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's, so that whoever sets a learning rate sets that one's."""
        return self.inner.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        """The inner optimizer's."""
        return self.inner.defaults

    @property
    def state(self) -> dict[Any, Any]:
        """The inner optimizer's with ours beside it, joined anew each time: for reading only."""
        joined = {p: {**self.inner.state.get(p, {}), **slow} for p, slow in self._slow.items()}
        return {**self.inner.state, **joined}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer; its slow weights and its count of k start here."""
        self.inner.add_param_group(param_group)
        self._open_window(self.param_groups[-1])

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step of the inner optimizer, and synchronise if it is the k-th.

        Returns:
            What the inner optimizer returns: the loss of `closure`, if given.
        """
        loss = self.inner.step(closure)
        self.look_ahead()
        return loss

    def look_ahead(self) -> None:
        """Count a step of the inner optimizer that was taken, and synchronise if it is the k-th.

        It is what `step` does after that; for whoever has the inner optimizer step by itself, as in
        a CUDA graph.
        """
        due = []
        for group in self.param_groups:
            # Without a count if the inner optimizer has loaded a state of its own.
            group["lookahead_steps"] = group.get("lookahead_steps", 0) + 1
            if group["lookahead_steps"] >= self.k:
                group["lookahead_steps"] = 0
                due += group["params"]
        if due:
            self._synchronise(due)

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Let the parameters be the slow weights in a `with` block.

        Within it take no step and save no state: the fast weights are set aside. After it they are
        the parameters again, unless `restart` or `finish` was called in it.
        BatchNorm statistics stay those of the fast weights.
        """
        params = self._params()
        fast = [p.detach().clone() for p in params]
        slow = [self._slow[p]["slow_weights"] for p in params]
        restarts = self._restarts
        try:
            _copy(slow, params)
            yield
        finally:
            if self._restarts == restarts:
                _copy(fast, params)

    def restart(self) -> None:
        """Start from the present parameters: for whoever has changed them, as an average does.

        They become the slow weights, and k steps from here are the next synchronisation. With
        `pullback` the present momentum becomes the slow one.
        """
        fast, slow = self._fast_and_slow(self._params())
        _copy(fast, slow)
        self._restart_counts()

    def finish(self) -> None:
        """Make the slow weights the parameters: what is kept of a training.

        The fast weights since the last synchronisation are dropped, with `pullback` the momentum
        too, and k steps from here are the next one.
        """
        fast, slow = self._fast_and_slow(self._params())
        _copy(slow, fast)
        self._restart_counts()

    def __getstate__(self) -> dict[str, Any]:
        names = ("inner", "k", "alpha", "momentum", "_slow")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "inner" in state:  # from a copy or a pickle
            self.__dict__.update(state, _restarts=0)
            super().__setstate__({})
            return
        # From load_state_dict, which has moved and cast all tensors as the parameters are.
        slow = {}
        for group in state["param_groups"]:
            for p in group["params"]:
                entries = state["state"][p]
                slow[p] = {name: entries.pop(name) for name in OURS if name in entries}
        names = OURS if self.momentum == "pullback" else OURS[:1]
        if any(set(entries) != set(names) for entries in slow.values()):
            raise ValueError(
                f"not the state of a Lookahead with momentum={self.momentum!r}, which has "
                f"{' and '.join(names)} for every parameter"
            )
        self._slow = slow
        self.inner.__setstate__(state)

    def __repr__(self) -> str:
        return (
            f"Lookahead (k={self.k}, alpha={self.alpha}, momentum={self.momentum!r}) "
            f"of {self.inner!r}"
        )

    def _open_window(self, group: dict[str, Any]) -> None:
        group["lookahead_steps"] = 0
        for p in group["params"]:
            self._slow[p] = {"slow_weights": p.detach().clone()}
            if self.momentum == "pullback":
                self._slow[p]["slow_momentum"] = torch.zeros_like(p)

    @torch.no_grad()
    def _synchronise(self, params: list[Tensor]) -> None:
        fast, slow = self._fast_and_slow(params)
        torch._foreach_lerp_(slow, fast, self.alpha)  # exact where α is 0 or 1
        torch._foreach_copy_(fast, slow)
        momenta = [momentum for _, momentum in self._momenta(params)]
        if self.momentum == "reset" and momenta:
            torch._foreach_zero_(momenta)

    def _fast_and_slow(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return what is interpolated, and beside it to what: weights; with `pullback` momenta."""
        fast = list(params)
        slow = [self._slow[p]["slow_weights"] for p in params]
        if self.momentum == "pullback":
            for p, momentum in self._momenta(params):
                fast.append(momentum)
                slow.append(self._slow[p]["slow_momentum"])
        return fast, slow

    def _momenta(self, params: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for p in params:
            state = self.inner.state.get(p, {})  # none before the first gradient
            for name in MOMENTA:
                if state.get(name) is not None:
                    yield p, state[name]

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _restart_counts(self) -> None:
        self._restarts += 1
        for group in self.param_groups:
            group["lookahead_steps"] = 0


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    torch._foreach_copy_(targets, sources)
