"""Phase-wise averaging of a linear regression, with phases from a learning-rate scheduler.

    python examples/from_scheduler.py

A phase ends where the scheduler lowers the learning rate. In the last phase the average is closer
to the solution than the last weights.
"""

import torch
from torch import nn

from phaseavg.averaging import Phasewise


def main(seed: int = 0) -> tuple[float, float]:
    """Train; return the distances of SGD's last weights and of the average to the solution."""
    torch.manual_seed(seed)
    solution = torch.randn(10)
    model = nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 45], gamma=0.3)
    averager = Phasewise.from_scheduler(model, scheduler, total_epochs=60)
    print(f"phases of {averager.lengths} epochs")
    for epoch in range(60):
        for _ in range(20):
            inputs = torch.randn(4, 10)
            targets = inputs @ solution + torch.randn(4)
            loss = (model(inputs).squeeze(1) - targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last = (model.weight.detach()[0] - solution).norm().item()
        if averager.epoch_end(model):
            average = (model.weight.detach()[0] - solution).norm().item()
            print(f"epoch {epoch + 1}: distance of SGD {last:.3f}, of the average {average:.3f}")
        scheduler.step()
    return last, average


if __name__ == "__main__":
    main()
