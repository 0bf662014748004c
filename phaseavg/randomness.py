"""Randomness as a function of (seed, stream, index), never the state of a global generator.

So resuming needs no generator state, and evaluating more or less often changes nothing.
"""

import hashlib

import numpy as np


def seed_for(seed: int, stream: str, index: int = 0) -> int:
    """Return 63 bits that depend on the three arguments alone.

    Args:
        seed: the run's seed.
        stream: what the numbers are for: `order`, `augmentation`, …
        index: epoch or step.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """Return a generator, on the CPU whatever the device, for one stream at one epoch or step."""
    return np.random.default_rng(seed_for(seed, stream, index))
