"""Optimizers in float64 numpy and their papers' letters, and a small problem to compare them on.

Written from the papers and not from the package. Each has θ, its rate η, and `step(g)`.
"""

import numpy as np
import torch
from torch import nn

STEPS, DROP = 240, 120  # the rate falls to a tenth before step 120


class SGD:
    """m ← μ m + g, θ ← θ − η m (Sutskever et al., 2013, as torch writes it)."""

    def __init__(self, theta, eta, mu=0.0, decay=0.0):
        self.theta, self.eta, self.mu, self.decay = np.array(theta, float), eta, mu, decay
        self.m = np.zeros_like(self.theta)

    def step(self, g):
        g = g + self.decay * self.theta
        self.m = self.mu * self.m + g
        self.theta = self.theta - self.eta * self.m


class Adam:
    """Algorithm 1 of Kingma and Ba (2015), with the L2 penalty λ in the gradient."""

    def __init__(self, theta, eta, betas=(0.9, 0.999), epsilon=1e-8, decay=0.0):
        self.theta, self.eta, self.decay = np.array(theta, float), eta, decay
        (self.beta1, self.beta2), self.epsilon = betas, epsilon
        self.m, self.v, self.t = np.zeros_like(self.theta), np.zeros_like(self.theta), 0

    def step(self, g):
        g = g + self.decay * self.theta
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        self.theta = self.theta - self.change()

    def change(self):
        m_hat = self.m / (1 - self.beta1**self.t)
        return self.eta * m_hat / (np.sqrt(self.v_hat()) + self.epsilon)

    def v_hat(self):
        return self.v / (1 - self.beta2**self.t)


class AMSGrad(Adam):
    """Algorithm 2 of Reddi et al. (2018), v̂ ← max(v̂, v), which has no bias corrections at all.

    torch divides m and, after the maximum, v̂ by them. Taking the maximum of the corrected v, as
    other libraries do, gives other weights.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.largest = np.zeros_like(self.theta)

    def v_hat(self):
        self.largest = np.maximum(self.largest, self.v)
        return self.largest / (1 - self.beta2**self.t)


class AdaBound(Adam):
    """Luo et al. (2019), as in the authors' code.

    Algorithm 1 of the paper has no bias corrections and divides the rates by √t.
    """

    def __init__(self, theta, eta, final=0.1, gamma=1e-3, **kwargs):
        super().__init__(theta, eta, **kwargs)
        self.eta_0, self.final, self.gamma = eta, final, gamma

    def change(self):
        t = self.t
        f = self.final * self.eta / self.eta_0
        lower, upper = f * (1 - 1 / (self.gamma * t + 1)), f * (1 + 1 / (self.gamma * t))
        eta = self.eta * np.sqrt(1 - self.beta2**t) / (1 - self.beta1**t)
        eta = eta / (np.sqrt(self.v) + self.epsilon)
        return np.clip(eta, lower, upper) * self.m


class Lookahead:
    """Algorithm 1 of Zhang et al. (2019) around one of the above, whose θ are the fast weights."""

    def __init__(self, inner, k=5, alpha=0.5):
        self.inner, self.k, self.alpha, self.phi, self.steps = inner, k, alpha, inner.theta, 0

    @property
    def theta(self):
        return self.inner.theta

    @property
    def eta(self):
        return self.inner.eta

    @eta.setter
    def eta(self, eta):
        self.inner.eta = eta

    def step(self, g):
        self.inner.step(g)
        self.steps += 1
        if self.steps % self.k == 0:
            self.phi = self.inner.theta = self.phi + self.alpha * (self.inner.theta - self.phi)


# The problem: f(θ) = Σ_i s_i log cosh((Aθ)_i − b_i), not quadratic, and steeper in some directions.

SHAPES = ((4, 3), (5,))
SIZE = 17
_random = np.random.default_rng(0)
_A = np.eye(SIZE) + 0.1 * _random.normal(size=(SIZE, SIZE))
_b = 2 * _random.normal(size=SIZE)
_scales = np.logspace(-3, 1, SIZE)  # so that AdaBound clamps some elements and not others
_start = _random.normal(size=SIZE)
_noise = 0.3 * _random.normal(size=(STEPS, SIZE))


def gradient(theta, step):
    """Return ∇f and the noise of a step, both of size s_i in direction i."""
    return _scales * (_A.T @ np.tanh(_A @ theta - _b) + _noise[step])


def start():
    """Return the first θ, as a vector."""
    return _start.copy()


def parameters(dtype=torch.float64):
    """Return the first θ, as two parameters."""
    pieces = torch.as_tensor(start()).to(dtype).split([12, 5])
    return [nn.Parameter(x.view(s).clone()) for x, s in zip(pieces, SHAPES, strict=True)]


def vector(params):
    """Return a copy of the parameters as one float64 vector."""
    return torch.cat([p.detach().double().flatten() for p in params]).numpy()


def set_gradients(params, step):
    """Give the parameters the gradients of a step, at where they are."""
    g = torch.as_tensor(gradient(vector(params), step))
    for p, piece in zip(params, g.split([12, 5]), strict=True):
        p.grad = piece.view_as(p).to(p.dtype)


def params_of(optimizer):
    """Return the parameters of all groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer, steps):
    """Take these steps on `parameters()`; return θ after each of them."""
    after = []
    for step in steps:
        set_gradients(params_of(optimizer), step)
        optimizer.step()
        after.append(vector(params_of(optimizer)))
    return np.array(after)


def trajectory(optimizer):
    """Yield θ after each of 240 steps of a torch optimizer of `parameters()`."""
    for step in range(STEPS):
        if step == DROP:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        yield train(optimizer, [step])[0]


def reference_trajectory(optimizer):
    """Yield θ after each of 240 steps of one of the above."""
    for step in range(STEPS):
        if step == DROP:
            optimizer.eta *= 0.1
        optimizer.step(gradient(optimizer.theta, step))
        yield optimizer.theta


def largest_error(actual, expected):
    """Return the largest relative error of a trajectory's points, each measured from the start."""
    pairs = zip(actual, expected, strict=True)
    return max(np.linalg.norm(a - e) / np.linalg.norm(e - start()) for a, e in pairs)


def scalar(value=0.0):
    """Return a parameter that is a single number."""
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


def push(optimizer, *gradients):
    """Take a step with these gradients of scalars, None for none; return where they end up."""
    for p, gradient in zip(params_of(optimizer), gradients, strict=True):
        p.grad = None if gradient is None else torch.full_like(p, gradient)
    optimizer.step()
    return [p.item() for p in params_of(optimizer)]
