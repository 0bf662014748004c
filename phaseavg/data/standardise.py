"""Standardise uint8 images to mean 0 and standard deviation 1."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Standardise:
    """Map uint8 images (…, C, H, W) to float32 with mean 0 and standard deviation 1 per channel.

    `mean` and `std` have an entry per channel, in units of the full scale 255.

    Raises:
        ValueError: if an entry is missing or not between 0 and 1, or a standard deviation is 0.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ValueError(f"{name}={list(values)} must have {channels} entries")
            if not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{name}={list(values)} must lie between 0 and 1, the full scale")
        if min(std) == 0:
            raise ValueError(f"std={list(std)} must be positive")
        self.mean, self.std = (
            torch.tensor(np.asarray(values) * 255, dtype=torch.float32, device=device)[
                :, None, None
            ]
            for values in (mean, std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return the standardised images."""
        return images.float().sub_(self.mean).div_(self.std)
