"""Data sets, each a function that returns `ResidentImages`."""

from phaseavg.data.cifar import cifar10, cifar100
from phaseavg.data.digits import digits
from phaseavg.data.resident import Batch, ResidentImages

__all__ = ["Batch", "ResidentImages", "cifar10", "cifar100", "digits"]
