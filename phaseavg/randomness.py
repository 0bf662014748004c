"""Random numbers as a function of (seed, stream, index), without global generators.

A resumed run needs no generator state, and extra evaluations do not change the training.
"""

import hashlib

import numpy as np


def seed_for(seed: int, stream: str, index: int = 0) -> int:
    """Return a 63-bit seed that depends only on the arguments.

    Args:
        seed: the run's seed.
        stream: the purpose of the random numbers: `train`, `batchnorm`, …
        index: epoch or step.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, index: int = 0) -> np.random.Generator:
    """Return a NumPy generator (on the CPU) for a stream at an epoch or step."""
    return np.random.default_rng(seed_for(seed, stream, index))
