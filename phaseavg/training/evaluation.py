"""Evaluate a model."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Evaluation(NamedTuple):
    """Mean cross-entropy, the error rate in %, and over how many images."""

    loss: float
    error: float
    images: int


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """Return loss and error over all images; the network is left in the mode it was in.

    Args:
        model: maps images (N, C, H, W) to logits (N, classes).
        batches: images and labels (N,), on the model's device.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    # MPS has no float64; 10,000 losses in float32 are still exact to 1e-5.
    exact = torch.float32 if device.type == "mps" else torch.float64
    loss = torch.zeros((), dtype=exact, device=device)
    wrong = torch.zeros((), dtype=torch.int64, device=device)
    images_seen = 0
    for images, labels in batches:
        logits = model(images).float()
        loss += cross_entropy(logits, labels, reduction="sum").to(exact)
        wrong += (logits.argmax(1) != labels).sum()
        images_seen += len(labels)
    model.train(training)
    return Evaluation(loss.item() / images_seen, 100 * wrong.item() / images_seen, images_seen)
