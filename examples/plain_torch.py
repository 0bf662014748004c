"""Phase-wise averaging in a plain torch loop: a small network on 8×8 digits (10 seconds, one core).

    python examples/plain_torch.py

Needs scikit-learn. Prints the test error of SGD and of the average at each phase end.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from phaseavg.averaging import Phasewise, recompute_batchnorm

EPOCHS, RATES, BATCH = [20, 10, 10], [0.1, 0.01, 0.001], 50


def data(seed: int) -> tuple[torch.Tensor, ...]:
    """Return training images, training labels (a fifth random), test images and test labels."""
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.target), generator=generator)
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order] / 16
    labels = torch.tensor(digits.target)[order]
    noisy = labels[:1000].clone()
    noisy[:200] = torch.randint(10, (200,), generator=generator)
    return images[:1000], noisy, images[1000:], labels[1000:]


def network() -> nn.Module:
    """Return a network of two convolutions with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )


@torch.no_grad()
def error(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the error rate in %."""
    model.eval()
    wrong = (model(images).argmax(1) != labels).float().mean().item()
    model.train()
    return 100 * wrong


def main(seed: int = 0) -> list[tuple[float, float]]:
    """Train; return the test errors (%) of SGD and of the average at each phase end."""
    torch.manual_seed(seed)
    images, labels, test_images, test_labels = data(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATES[0], momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30])
    averager = Phasewise(model, epochs=EPOCHS)
    errors = []
    for epoch in range(sum(EPOCHS)):
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        sgd = error(model, test_images, test_labels)
        if averager.epoch_end(model):  # phase end: the average has replaced the weights
            recompute_batchnorm(model, images.split(BATCH))
            errors.append((sgd, error(model, test_images, test_labels)))
            print(f"epoch {epoch + 1}: SGD {sgd:.2f} %, average {errors[-1][1]:.2f} %")
        scheduler.step()
    averager.finish()
    return errors


if __name__ == "__main__":
    main()
