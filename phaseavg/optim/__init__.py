"""Baseline optimizers that torch.optim lacks."""

from phaseavg.optim.adabound import AdaBound
from phaseavg.optim.lookahead import Lookahead

__all__ = ["AdaBound", "Lookahead"]
