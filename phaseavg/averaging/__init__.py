"""Averages of epoch-end weights: how epochs are weighted, and when the average takes over.

Needs torch alone. In a training loop of one's own::

    averager = Phasewise(model, epochs=[80, 40, 40])  # once; the average lives on the CPU
    ...
    if averager.epoch_end(model):                     # after every epoch; True at a phase's end,
        recompute_batchnorm(model, train_batches)     # when the weights have become the average
"""

from phaseavg.averaging.average import Average, WeightAverage, unwrapped
from phaseavg.averaging.averagers import AtEnd, Averager, NoAveraging, Phasewise
from phaseavg.averaging.batchnorm import recompute_batchnorm
from phaseavg.averaging.learnt import Learnt, LearntAverage
from phaseavg.averaging.weights import Exponential, Uniform, Weights

__all__ = [
    "AtEnd",
    "Average",
    "Averager",
    "Exponential",
    "Learnt",
    "LearntAverage",
    "NoAveraging",
    "Phasewise",
    "Uniform",
    "WeightAverage",
    "Weights",
    "recompute_batchnorm",
    "unwrapped",
]
