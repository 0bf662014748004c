"""Optimizers that the phase-wise average is compared with and that torch.optim lacks.

Needs torch alone. Both are used as torch's own are: hooks, learning rate schedulers, checkpoints.
"""

from phaseavg.optim.adabound import AdaBound
from phaseavg.optim.lookahead import Lookahead

__all__ = ["AdaBound", "Lookahead"]
