"""Optimizers that phase-wise averaging is compared with and torch.optim lacks."""

from phaseavg.optim.adabound import AdaBound
from phaseavg.optim.lookahead import Lookahead

__all__ = ["AdaBound", "Lookahead"]
