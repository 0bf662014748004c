"""Weight averaging over training phases, and recomputation of BatchNorm statistics.

Requires only torch. In your own training loop::

    averager = Phasewise(model, epochs=[80, 40, 40])  # the average is stored on the CPU
    ...
    if averager.epoch_end(model):                     # call after every epoch; at a phase end the
        recompute_batchnorm(model, train_batches)     # average replaces the weights: returns True
"""

from phaseavg.averaging.average import WeightAverage, unwrapped
from phaseavg.averaging.averagers import AtEnd, Averager, NoAveraging, Phasewise
from phaseavg.averaging.batchnorm import recompute_batchnorm
from phaseavg.averaging.bema import BEMA, BEMAAverage
from phaseavg.averaging.rna import RNA, RNAAverage
from phaseavg.averaging.weights import (
    Blend,
    Exponential,
    FromDecay,
    HalfLife,
    Power,
    Tail,
    Uniform,
    Weights,
    reconstruct,
)

__all__ = [
    "BEMA",
    "RNA",
    "AtEnd",
    "Averager",
    "BEMAAverage",
    "Blend",
    "Exponential",
    "FromDecay",
    "HalfLife",
    "NoAveraging",
    "Phasewise",
    "Power",
    "RNAAverage",
    "Tail",
    "Uniform",
    "WeightAverage",
    "Weights",
    "recompute_batchnorm",
    "reconstruct",
    "unwrapped",
]
