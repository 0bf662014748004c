"""Averages of epoch-end weights: how epochs are weighted, and when they replace the weights.

Needs torch alone. In your own training loop::

    averager = Phasewise(model, epochs=[80, 40, 40])  # the average is stored on the CPU
    ...
    if averager.epoch_end(model):                     # after every epoch; True at a phase's end,
        recompute_batchnorm(model, train_batches)     # when the weights have become the average
"""

from phaseavg.averaging.average import WeightAverage, unwrapped
from phaseavg.averaging.averagers import AtEnd, Averager, NoAveraging, Phasewise
from phaseavg.averaging.batchnorm import recompute_batchnorm
from phaseavg.averaging.rna import RNA, RNAAverage
from phaseavg.averaging.weights import Exponential, Uniform, Weights

__all__ = [
    "RNA",
    "AtEnd",
    "Averager",
    "Exponential",
    "NoAveraging",
    "Phasewise",
    "RNAAverage",
    "Uniform",
    "WeightAverage",
    "Weights",
    "recompute_batchnorm",
    "unwrapped",
]
