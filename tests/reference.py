"""Algorithm 1, its closed form, learnt weights and BatchNorm passes in float64, and trajectories.

Written from the paper and not from the package, which is compared with it.
"""
# ruff: noqa: N803

import io

import numpy as np
import torch
from torch import nn


def alphas(gamma0, T):
    """α_t = (1 − γ) γ^(T−t) / (1 − γ^T) for t = 1…T, with γ = γ0^(80/T)."""
    gamma = gamma0 ** (80 / T)
    t = np.arange(1, T + 1)
    return (1 - gamma) * gamma ** (T - t) / (1 - gamma**T)


def algorithm_1(thetas, gamma0, T):
    """Start at zero, θ̄ ← γ θ̄ + (1 − γ) θ_t; return θ̄ / (1 − γ^t) after every t."""
    gamma = gamma0 ** (80 / T)
    average, debiased = np.zeros_like(thetas[0]), []
    for t, theta in enumerate(thetas, start=1):
        average = gamma * average + (1 - gamma) * theta
        debiased.append(average / (1 - gamma**t))
    return debiased


def rna(thetas, rho, K=None):
    """Return c and Σ c_t θ_t of θ_0…θ_T (Scieur et al., 2018), for regular G + ρI."""
    thetas = thetas if K is None else thetas[-K - 1 :]
    R = np.diff(thetas, axis=0).T  # noqa: N806
    G = R.T @ R / np.linalg.norm(R.T @ R, 2)  # noqa: N806
    z = np.linalg.solve(G + rho * np.eye(len(G)), np.ones(len(G)))
    c = z / z.sum()
    return c, c @ thetas[1:]


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


def flat(module):
    """Return a copy of all parameters as one float64 vector."""
    return np.concatenate([p.detach().double().numpy().ravel() for p in module.parameters()])


@torch.no_grad()
def overwrite(module, theta):
    """Change the parameters in place, as an optimizer does, to the entries of a vector."""
    first = 0
    for parameter in module.parameters():
        values = torch.as_tensor(theta[first : first + parameter.numel()])
        parameter.copy_(values.view_as(parameter))
        first += parameter.numel()


def random_trajectory(module, epochs, seed=0):
    """Return `epochs` random weight vectors of the module's size."""
    size = sum(p.numel() for p in module.parameters())
    return np.random.default_rng(seed).normal(size=(epochs, size))


def small_network():
    """Return a float64 network of 26 parameters in four tensors."""
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def relative_error(actual, expected):
    return np.linalg.norm(np.subtract(actual, expected)) / np.linalg.norm(expected)


def saved_and_loaded(value):
    """Return a copy of `value`, by way of a file."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
