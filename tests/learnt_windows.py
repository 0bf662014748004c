"""Windows of learnt weights, opened and observed: what tests of them and their snapshots need."""

import copy

import torch
from reference import flat, overwrite, small_network
from torch import nn

from phaseavg.averaging.learnt import LearntAverage


def opened(model, theta, weights, epochs):
    overwrite(model, theta)
    average = LearntAverage(model, weights)
    average.start(model, epochs)
    return average


def observed(thetas, weights, model=None):
    """Return the average of a whole window of weight vectors, the first of them its start."""
    model = model or small_network()
    average = opened(model, thetas[0], weights, len(thetas) - 1)
    for theta in thetas[1:]:
        overwrite(model, theta)
        average.observe(model)
    return average


def result(average, like=None):
    model = copy.deepcopy(like or small_network())
    average.copy_to(model)
    return flat(model)


def convolutional():
    """Return a float32 network with BatchNorm, its weights in channels_last, of several pieces."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.Conv2d(40, 20, 3))
    return model.to(memory_format=torch.channels_last)
