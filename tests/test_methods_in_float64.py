"""Compare each method in float64, in a custom loop, with a program written from the paper.

The program shares nothing with the package but the network and torch's gradients.
"""

from contextlib import nullcontext
from functools import partial

import numpy as np
import optimizer_reference
import pytest
import torch
from reference import algorithm_1, flat, overwrite, recompute, relative_error, rna
from torch import nn

from phaseavg.averaging import (
    BEMA,
    RNA,
    AtEnd,
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
            slow = isinstance(optimizer, Lookahead)
            with optimizer.evaluation_weights() if slow else nullcontext():
                if averager.epoch_end(model):
                    recompute_batchnorm(model, batches_of(epoch))
                    if slow:
                        optimizer.restart()
                found.append(state_of(model))
    averager.finish()
    return found


def state_of(model):
    statistics = [b.numpy().copy() for name, b in model.named_buffers() if "running" in name]
    return np.concatenate([flat(model), *statistics])


def from_the_paper(update, average, windows, k=None):
    """Return the same; `average` maps θ_0…θ_T of a window to its average, None for no averaging."""
    model = network()
    theta = slow = flat(model)
    rule, found, window, epoch, steps = update(theta), [], [theta], 0, 0
    initial = rule.eta
    for length, factor in zip(PHASES, RATES, strict=True):
        rule.eta = initial * factor
        for _ in range(length):
            for inputs, labels in batches_of(epoch):
                overwrite(model, theta)
                model.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                g = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
                rule.theta = theta
                rule.step(g)
                theta = rule.theta
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


def exponential(thetas):
    return algorithm_1(thetas[1:], 0.9, len(thetas) - 1)[-1]


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=DECAY)
ADAM = partial(torch.optim.Adam, lr=1e-2, weight_decay=DECAY)
ADABOUND = partial(AdaBound, lr=1e-2, weight_decay=DECAY)
MOMENTUM = partial(optimizer_reference.SGD, eta=0.1, mu=0.9, decay=DECAY)
ADAPTIVE = {"eta": 1e-2, "decay": DECAY}
EACH, WHOLE, LAST = [(0, 4), (4, 7), (7, 9)], [(0, 9)], [(7, 9)]
PLAIN, OURS, END = (partial(kind, epochs=PHASES) for kind in (NoAveraging, Phasewise, AtEnd))


def lookahead(params):
    return Lookahead(SGD(params), k=5)


def mean(thetas):
    return thetas[1:].mean(0)


def learnt(thetas):
    return rna(thetas, 1e-2)[1]


def bema(thetas):
    ema = thetas[0]
    for t, theta in enumerate(thetas[1:], start=1):
        ema = ema + (10 + t) ** -0.5 * (theta - ema)
    return ema + (10 + t) ** -0.2 * (theta - thetas[0])


METHODS = {
    "sgd": (SGD, PLAIN, MOMENTUM, None, []),
    "phase-wise": (SGD, OURS, MOMENTUM, exponential, EACH),
    "uniform": (SGD, partial(OURS, weights=Uniform()), MOMENTUM, mean, EACH),
    "bema": (SGD, partial(OURS, weights=BEMA()), MOMENTUM, bema, EACH),
    "at the end": (SGD, END, MOMENTUM, exponential, WHOLE),
    "last phase": (SGD, partial(END, window="phase"), MOMENTUM, exponential, LAST),
    "learnt": (SGD, None, MOMENTUM, learnt, EACH),
    "adam, phase-wise": (
        ADAM,
        OURS,
        partial(optimizer_reference.Adam, **ADAPTIVE),
        exponential,
        EACH,
    ),
    "amsgrad": (
        partial(ADAM, amsgrad=True),
        PLAIN,
        partial(optimizer_reference.AMSGrad, **ADAPTIVE),
        None,
        [],
    ),
    "adabound, phase-wise": (
        ADABOUND,
        OURS,
        partial(optimizer_reference.AdaBound, **ADAPTIVE),
        exponential,
        EACH,
    ),
    "lookahead": (lookahead, PLAIN, MOMENTUM, None, []),
    "lookahead, phase-wise": (lookahead, OURS, MOMENTUM, exponential, EACH),
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
