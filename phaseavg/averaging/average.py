"""A weighted average of a model's weights over a window of epochs."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from phaseavg.averaging.weights import Weights, coefficients


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module behind `torch.compile` and (distributed) data-parallel wrappers."""
    if hasattr(model, "_orig_mod"):  # torch.compile's; its class would cost seconds to import
        return unwrapped(model._orig_mod)
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    return model


class Average(Protocol):
    """What an averager, and whoever looks at its average, needs of it."""

    @property
    def window(self) -> Any:
        """Epochs of the window, a number or a tensor of one; 0 before the first `start`."""
        ...

    @property
    def n_averaged(self) -> Any:
        """Epochs observed since `start`, likewise."""
        ...

    def start(self, model: nn.Module, epochs: int) -> None:
        """Forget what was averaged; open a window of `epochs` epochs at the weights of `model`."""
        ...

    def observe(self, model: nn.Module) -> None:
        """Take in the weights of `model` at the end of the window's next epoch."""
        ...

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` by the average; its buffers are left alone."""
        ...

    def close(self) -> None:
        """Give back what a window that is over has no more use for; its coefficients stay."""
        ...

    def coefficients(self) -> list[float]:
        """Return α_t of the epochs observed so far; they sum to 1."""
        ...

    @property
    def notes(self) -> dict[str, Any]:
        """What else a record should have of how the coefficients were found."""
        ...

    def storage(self, epochs: int) -> tuple[int, str]:
        """Return the bytes that a window of so many epochs takes at its end, and where."""
        ...

    def files(self) -> list[Path]:
        """Return the files that the state refers to."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that continuing needs, as tensors, numbers and names."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Continue from what `state_dict` returned."""
        ...


class WeightAverage(AveragedModel):
    """The debiased average θ̄ = Σ α_t θ_t of the weights observed since `start`.

    Equal at every t to the paper's zero-started θ̄ ← γ θ̄ + (1 − γ) θ_t divided by 1 − γ^t, and so
    usable at any moment of a window. It is not what a copy-started exponential average gives.

    `module` holds θ̄ in its parameters (in float32 where the model's are shorter, for small updates
    would be rounded away) and the latest model's buffers: BatchNorm statistics are not averaged but
    recomputed (`recompute_batchnorm`).

    Args:
        model: whose weights are averaged; wrappers of `torch.compile` and DDP are seen through.
        weights: how the epochs are weighted.
        device: where θ̄ lives.
    """

    window: Tensor

    def __init__(
        self, model: nn.Module, weights: Weights, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(unwrapped(model), device=torch.device(device), avg_fn=self._mix)
        self.requires_grad_(requires_grad=False)
        for parameter in self.module.parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        self.weights = weights
        # Part of the state: a γ that depends on T has to survive a restart in mid-window.
        self.register_buffer("window", torch.zeros_like(self.n_averaged))

    def start(self, model: nn.Module, epochs: int) -> None:
        """Forget what was averaged and open a window of `epochs` epochs.

        The weights that `model` has now are not part of it.

        Raises:
            ValueError: if `epochs` is not positive.
        """
        if epochs < 1:
            raise ValueError(f"epochs={epochs} must be positive")
        self.n_averaged.zero_()
        self.window.fill_(epochs)

    def observe(self, model: nn.Module) -> None:
        """Take the weights of `model` into the average, as θ_t of the window's next epoch t.

        Raises:
            RuntimeError: if the window is full or was never opened.
        """
        if self.n_averaged >= self.window:
            raise RuntimeError(
                f"the window of {self.window.item()} epochs is full: call start() for a new one"
            )
        self.update_parameters(unwrapped(model))

    def _mix(self, average: Tensor, current: Tensor, observed: Tensor) -> Tensor:
        # From Python integers: tensors would have w_t computed in float32.
        weight = self.weights.step(int(observed.item()) + 1, int(self.window.item()))
        return average.lerp_(current.to(average.dtype), weight)  # in place: no memory to find

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` by the average; its buffers are left alone.

        Raises:
            RuntimeError: if nothing has been observed since `start`.
        """
        if self.n_averaged == 0:
            raise RuntimeError("nothing has been averaged yet: call observe() after an epoch first")
        pairs = zip(unwrapped(model).parameters(), self.module.parameters(), strict=True)
        for parameter, average in pairs:
            parameter.copy_(average)

    def close(self) -> None:
        """Do nothing: there is one average, and its place is needed for the next."""

    def coefficients(self) -> list[float]:
        """Return α_t of the epochs observed so far."""
        return coefficients(self.weights, int(self.window), int(self.n_averaged))

    @property
    def notes(self) -> dict[str, Any]:
        """Nothing: the weights say it all."""
        return {}

    def storage(self, epochs: int) -> tuple[int, str]:
        """Return the bytes of the average, whatever the number of epochs, and its device."""
        size = sum(t.numel() * t.element_size() for t in self.state_dict().values())
        return size, str(next(self.parameters()).device)

    def files(self) -> list[Path]:
        """Return none: the state holds all there is."""
        return []
