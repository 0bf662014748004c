"""Exponential averages beside ours: torch's, timm's, and a loop over a dictionary."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from phaseavg.config import Settings
from phaseavg.training.execution import pick_device
from phaseavg.training.parts import new_averager

WALK = 1e-3  # deviation of the steps between the weights that stand for a phase's epochs
OURS = "ours"
PEERS = ("torch AveragedModel", "timm ModelEmaV3", "a dictionary")
COMPARED = 5  # epochs after which all have to have the same average


@torch.no_grad()
def walk(model: nn.Module) -> None:
    """Take the weights a step further, as an epoch would."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=WALK)


@dataclass
class Contestant:
    """An exponential average, ours or another.

    Attributes:
        observe: takes in the weights of a model.
        weights: the parameters of the average, in the model's order.
    """

    observe: Callable[[nn.Module], object]
    weights: Callable[[], Iterable[Tensor]]


def contestants(model: nn.Module, settings: Settings, epochs: int) -> dict[str, Contestant]:
    """Return ours and its peers, all begun at the weights of a model, which is the first epoch's.

    Args:
        model: whose weights are averaged.
        settings: of a run with exponential weights.
        epochs: T of the phase.
    """
    home = pick_device(settings.execution.average_device, "execution.average_device")
    decay = settings.averaging["weights"]["gamma0"] ** (80 / epochs)
    averager = new_averager("averaging", settings.averaging, settings, model, [epochs])
    torchs = AveragedModel(model, device=home, multi_avg_fn=get_ema_multi_avg_fn(decay))
    timms = ModelEmaV3(model, decay=decay, device=home)
    kept = {name: value.detach().to(home, copy=True) for name, value in model.state_dict().items()}

    @torch.no_grad()
    def loop(model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                kept[name].mul_(decay).add_(value.to(home), alpha=1 - decay)

    names = [name for name, _ in model.named_parameters()]
    found = {
        OURS: Contestant(averager.observe, averager.average.module.parameters),
        PEERS[0]: Contestant(torchs.update_parameters, torchs.module.parameters),
        PEERS[1]: Contestant(timms.update, timms.module.parameters),
        PEERS[2]: Contestant(loop, lambda: [kept[name] for name in names]),
    }
    for contestant in found.values():
        contestant.observe(model)
    return found


@torch.no_grad()
def require_same(model: nn.Module, settings: Settings, epochs: int) -> None:
    """Make sure that all come to the same average of a few epochs.

    A peer's e_t = γ^t θ_1 + (1 − γ) Σ γ^(t−s) θ_s has the first weights θ_1 in it once more than
    the debiased average θ̄_t, so that θ̄_t − θ_1 = (e_t − θ_1) / (1 − γ^t).

    Args:
        model: with the first weights; left as it is.
        settings: of a run with exponential weights.
        epochs: T of the phase.

    Raises:
        AssertionError: if they do not.
    """
    walker = deepcopy(model)
    found = contestants(walker, settings, epochs)
    for _ in range(COMPARED - 1):
        walk(walker)
        for contestant in found.values():
            contestant.observe(walker)
    left = settings.averaging["weights"]["gamma0"] ** (80 / epochs * COMPARED)
    first = [parameter.cpu() for parameter in model.parameters()]
    ours = [a.cpu() - b for a, b in zip(found[OURS].weights(), first, strict=True)]
    for peer in PEERS:
        for our, average, begun in zip(ours, found[peer].weights(), first, strict=True):
            gone = (average.cpu() - begun) / (1 - left)
            torch.testing.assert_close(gone, our, rtol=1e-3, atol=1e-6)
