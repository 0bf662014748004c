"""Compare each method in float64, in a custom loop, with a program written from the paper.

The program shares nothing with the package but the network and torch's gradients.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from reference import algorithm_1, flat, overwrite, relative_error, rna
from torch import nn

from phaseavg.averaging import (
    RNA,
    AtEnd,
    Exponential,
    NoAveraging,
    Phasewise,
    Uniform,
    recompute_batchnorm,
)
from phaseavg.optim import AdaBound, Lookahead

PHASES, RATES, DECAY = [4, 3, 2], [1, 0.1, 0.01], 1e-3
BATCHES = 4  # of an epoch; 5 steps of Lookahead do not divide it, nor a phase


def network():
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3), nn.BatchNorm1d(3)
    return nn.Sequential(*layers).double()


def batches_of(epoch):
    generator = torch.Generator().manual_seed(epoch)
    sizes = [16] * (BATCHES - 1) + [7]
    return [
        (
            torch.randn(n, 5, generator=generator).double(),
            torch.randint(3, (n,), generator=generator),
        )
        for n in sizes
    ]


def with_the_package(optimizer_of, averager_of):
    """Return the weights and BatchNorm statistics at the end of each epoch."""
    model = network()
    optimizer, averager = optimizer_of(model.parameters()), averager_of(model)
    initial, found, epoch = optimizer.param_groups[0]["lr"], [], 0
    for length, factor in zip(PHASES, RATES, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = initial * factor
        for _ in range(length):
            for inputs, labels in batches_of(epoch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
            epoch += 1
            if isinstance(optimizer, Lookahead):
                with optimizer.evaluation_weights():
                    if averager.epoch_end(model):
                        recompute_batchnorm(model, batches_of(epoch))
                        optimizer.restart()
                    found.append(state_of(model))
            else:
                if averager.epoch_end(model):
                    recompute_batchnorm(model, batches_of(epoch))
                found.append(state_of(model))
    averager.finish()
    return found


def state_of(model):
    statistics = [b.numpy().copy() for name, b in model.named_buffers() if "running" in name]
    return np.concatenate([flat(model), *statistics])


class Momentum:
    """v ← μ v + g; θ ← θ − λ v."""

    initial = 0.1

    def __init__(self, size):
        self.v = np.zeros(size)

    def step(self, theta, g, rate):
        self.v = 0.9 * self.v + g
        return theta - rate * self.v


class Adam:
    """m̂ / (√v̂ + ε), with the largest v so far for AMSGrad."""

    initial, largest = 1e-2, False

    def __init__(self, size):
        self.m, self.v, self.most, self.t = np.zeros(size), np.zeros(size), np.zeros(size), 0

    def moments(self, g):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        self.most = np.maximum(self.most, self.v)
        return 1 - 0.9**self.t, 1 - 0.999**self.t

    def step(self, theta, g, rate):
        first, second = self.moments(g)
        v = self.most if self.largest else self.v
        return theta - rate * (self.m / first) / (np.sqrt(v / second) + 1e-8)


class AMSGrad(Adam):
    largest = True


class Bounded(Adam):
    """AdaBound: the rate of each element is clamped between bounds that close on 0.1 λ / λ_0."""

    def step(self, theta, g, rate):
        first, second = self.moments(g)
        final = 0.1 * rate / self.initial
        lower, upper = final * (1 - 1 / (1e-3 * self.t + 1)), final * (1 + 1 / (1e-3 * self.t))
        rates = rate * math.sqrt(second) / first / (np.sqrt(self.v) + 1e-8)
        return theta - np.clip(rates, lower, upper) * self.m


def from_the_paper(update, average, windows, k=None):
    """Return the same; `average` maps θ_0…θ_T of a window to its average, None for no averaging."""
    model = network()
    theta = slow = flat(model)
    rule, found, window, epoch, steps = update(theta.size), [], [theta], 0, 0
    for length, factor in zip(PHASES, RATES, strict=True):
        for _ in range(length):
            for inputs, labels in batches_of(epoch):
                overwrite(model, theta)
                model.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                g = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
                theta = rule.step(theta, g + DECAY * theta, rule.initial * factor)
                steps += 1
                if k is None:
                    slow = theta
                elif steps % k == 0:
                    theta = slow = slow + 0.5 * (theta - slow)
            epoch += 1
            window.append(slow)
            overwrite(model, slow)
            if epoch in [last for _, last in windows]:
                theta = slow = average(np.array(window))
                steps = 0
                overwrite(model, slow)
                recompute(model, batches_of(epoch))
            if epoch in [first for first, _ in windows]:
                window = [slow]
            found.append(state_of(model))
    return found


@torch.no_grad()
def recompute(model, batches):
    """Average each batch's mean and unbiased variance, weighted by batch size, layer by layer."""
    sizes = [len(inputs) for inputs, _ in batches]
    hidden = [inputs for inputs, _ in batches]
    for layer in model:
        if isinstance(layer, nn.BatchNorm1d):
            means = np.array([x.mean(0).numpy() for x in hidden])
            variances = np.array([x.numpy().var(0, ddof=1) for x in hidden])
            layer.running_mean.copy_(torch.tensor(np.average(means, axis=0, weights=sizes)))
            layer.running_var.copy_(torch.tensor(np.average(variances, axis=0, weights=sizes)))
            hidden = [
                (x - x.mean(0)) / (x.var(0, correction=0) + layer.eps).sqrt() * layer.weight
                + layer.bias
                for x in hidden
            ]
        else:
            hidden = [layer(x) for x in hidden]


def exponential(gamma0):
    return lambda thetas: algorithm_1(thetas[1:], gamma0, len(thetas) - 1)[-1]


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=DECAY)
ADAM = partial(torch.optim.Adam, lr=1e-2, weight_decay=DECAY)
EACH, WHOLE, LAST = [(0, 4), (4, 7), (7, 9)], [(0, 9)], [(7, 9)]
OURS = partial(Phasewise, epochs=PHASES)
METHODS = {
    "sgd": (SGD, partial(NoAveraging, epochs=PHASES), Momentum, None, []),
    "phase-wise": (SGD, OURS, Momentum, exponential(0.9), EACH),
    "phase-wise, 0.5": (
        SGD,
        partial(OURS, weights=Exponential(0.5)),
        Momentum,
        exponential(0.5),
        EACH,
    ),
    "uniform": (
        SGD,
        partial(OURS, weights=Uniform()),
        Momentum,
        lambda thetas: thetas[1:].mean(0),
        EACH,
    ),
    "at the end": (SGD, partial(AtEnd, epochs=PHASES), Momentum, exponential(0.9), WHOLE),
    "last phase": (
        SGD,
        partial(AtEnd, epochs=PHASES, window="phase"),
        Momentum,
        exponential(0.9),
        LAST,
    ),
    "learnt": (SGD, None, Momentum, lambda thetas: rna(thetas, 1e-2)[1], EACH),
    "adam, phase-wise": (ADAM, OURS, Adam, exponential(0.9), EACH),
    "amsgrad": (
        partial(ADAM, amsgrad=True),
        partial(NoAveraging, epochs=PHASES),
        AMSGrad,
        None,
        [],
    ),
    "adabound, phase-wise": (
        partial(AdaBound, lr=1e-2, weight_decay=DECAY),
        OURS,
        Bounded,
        exponential(0.9),
        EACH,
    ),
    "lookahead": (
        lambda params: Lookahead(SGD(params), k=5),
        partial(NoAveraging, epochs=PHASES),
        Momentum,
        None,
        [],
    ),
    "lookahead, phase-wise": (
        lambda params: Lookahead(SGD(params), k=5),
        OURS,
        Momentum,
        exponential(0.9),
        EACH,
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_matches_the_paper_in_each_epoch(name, tmp_path):
    optimizer, averager, update, average, windows = METHODS[name]
    if averager is None:
        averager = partial(OURS, weights=RNA(tmp_path, rho=1e-2))
    found = with_the_package(optimizer, averager)
    expected = from_the_paper(update, average, windows, 5 if "lookahead" in name else None)
    assert len(found) == len(expected) == sum(PHASES)
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) <= 1e-12, errors
    assert relative_error(found[0], found[-1]) > 1e-3  # the weights have changed
