"""Compare batches of images and labels."""

import torch

PIXELS = {"mean": [0.0] * 3, "std": [1 / 255] * 3}  # standardised images are then raw pixels


def concatenate(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def equal(batches, others):
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        torch.equal(x, v) and torch.equal(y, w)
        for (x, y), (v, w) in zip(batches, others, strict=True)
    )
