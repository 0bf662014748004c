"""What README tells people to type works as it stands there."""

import re

import torch
from conftest import REPOSITORY
from torch import nn


def test_the_averager_in_a_loop_of_ones_own() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    ended = []

    def train_one_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list) -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        ended.append(model[0].weight.detach().clone())

    names = {
        "model": model,
        "optimizer": optimizer,
        "train_one_epoch": train_one_epoch,
        "train_batches": batches,
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [80, 120]),
    }
    exec(code, names)
    assert len(ended) == 160
    gamma = 0.9 ** (80 / 40)
    last = ended[120:]
    weights = [(1 - gamma) * gamma ** (39 - t) / (1 - gamma**40) for t in range(40)]
    expected = sum(weight * theta.double() for weight, theta in zip(weights, last, strict=True))
    assert torch.allclose(model[0].weight.double(), expected, rtol=1e-5)
    assert not torch.equal(model[0].weight, last[-1])
    assert torch.allclose(model[1].running_mean, model[0](batches[0][0]).mean(0), atol=1e-5)
