"""A small network, its batches, and the plain loop that the integrations have to equal."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from phaseavg.averaging import Phasewise, recompute_batchnorm

EPOCHS, DROPS, LR = [3, 2], [3], 0.1


def network() -> nn.Sequential:
    """Return a network with BatchNorm; always the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def batches(dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of an epoch; the last one is smaller."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(21, 4, generator=generator).to(dtype)
    labels = torch.randint(3, (21,), generator=generator)
    return list(zip(inputs.split(8), labels.split(8), strict=True))


def optimizer_and_scheduler(
    model: nn.Module,
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return SGD and a scheduler that lowers its rate where the first phase ends."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, DROPS)


def plain_loop(
    model: nn.Module, dtype: torch.dtype = torch.float32, count: int | None = None
) -> tuple[list[float], Phasewise]:
    """Train `model` on the first `count` batches; return its loss after each epoch, in eval mode,
    and the averager."""
    optimizer, scheduler = optimizer_and_scheduler(model)
    averager = Phasewise(model, EPOCHS)
    losses = []
    for _ in range(sum(EPOCHS)):
        model.train()
        for inputs, labels in batches(dtype)[:count]:
            optimizer.zero_grad()
            cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        if averager.epoch_end(model):
            recompute_batchnorm(model, batches(dtype))
        losses.append(evaluated(model, dtype))
        scheduler.step()
    return losses, averager


@torch.no_grad()
def evaluated(model: nn.Module, dtype: torch.dtype = torch.float32) -> float:
    """Return the mean of the batches' losses in eval mode."""
    model.eval()
    losses = [cross_entropy(model(x), labels).item() for x, labels in batches(dtype)]
    return sum(losses) / len(losses)


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Return whether the parameters and buffers of two models are bitwise equal."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def documented_lines(page: str, library: str) -> str:
    """Return the code on a page that uses the callback of a library."""
    text = (Path(__file__).parents[2] / page).read_text()
    pattern = rf"```python\n(from phaseavg.integrations.{library} .*?)```"
    (code,) = re.findall(pattern, text, re.DOTALL)
    return code
