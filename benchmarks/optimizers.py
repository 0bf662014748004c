"""An optimizer's step beside its peers': `python -m benchmarks.optimizers`.

All start from the same weights of one network and get the same gradients, which stay what they are.
In a round each takes as many steps as Lookahead has between two synchronisations, in an order that
turns round from one round to the next; a step is their mean. Ratios are taken within a round.

Before time is taken, ours and the peer have to come to the same weights: it is the same work.
"""

import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import adabound
import pandas as pd
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from benchmarks.common import (
    Goal,
    add_network,
    add_rounds,
    cell,
    mistaken,
    parser_of,
    repeated,
    report,
    seconds_of,
    settings_of,
    versions_of,
)
from benchmarks.images import noise_set
from phaseavg.errors import UserError
from phaseavg.optim import AdaBound, Lookahead
from phaseavg.training.execution import pick_device
from phaseavg.training.parts import new_model

K = 5  # steps from one synchronisation of Lookahead to the next
WINDOWS = 3  # of K steps, that ours and the peer are compared over
DECAY = 5e-4

sgd = partial(SGD, lr=0.1, momentum=0.9, weight_decay=DECAY)

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD": sgd,
    "Lookahead(SGD)": lambda params: Lookahead(sgd(params), k=K),
    "pytorch_optimizer.Lookahead(SGD)": lambda params: pytorch_optimizer.Lookahead(
        sgd(params), k=K
    ),
    "AdaBound, foreach": partial(AdaBound, weight_decay=DECAY),
    "adabound.AdaBound": partial(adabound.AdaBound, weight_decay=DECAY),
    "Adam, foreach": partial(Adam, weight_decay=DECAY, foreach=True),
    "Adam, one by one": partial(Adam, weight_decay=DECAY, foreach=False),
}
SAME_WORK = {  # ours: the peer
    "Lookahead(SGD)": "pytorch_optimizer.Lookahead(SGD)",
    "AdaBound, foreach": "adabound.AdaBound",
}
OTHER_WORK = (  # for comparison
    ("Lookahead(SGD)", "SGD"),
    ("pytorch_optimizer.Lookahead(SGD)", "SGD"),
    ("AdaBound, foreach", "Adam, foreach"),
    ("adabound.AdaBound", "Adam, one by one"),
)


def contestants(model: nn.Module) -> tuple[dict[str, Optimizer], dict[str, list[nn.Parameter]]]:
    """Return the optimizers and, by the same names, the weights that each of them has."""
    start = [p.detach() for p in model.parameters()]
    gradients = [0.01 * torch.randn_like(p) for p in start]  # none of them writes to its gradients
    optimizers, weights = {}, {}
    for name, new in OPTIMIZERS.items():
        weights[name] = [nn.Parameter(p.clone()) for p in start]
        for parameter, gradient in zip(weights[name], gradients, strict=True):
            parameter.grad = gradient
        optimizers[name] = new(weights[name])
    return optimizers, weights


def window(optimizer: Optimizer) -> None:
    """Take K steps."""
    for _ in range(K):
        optimizer.step()


def require_same(ours: list[Tensor], peers: list[Tensor], start: list[Tensor]) -> None:
    """Make sure that two optimizers have done the same.

    Args:
        ours: weights.
        peers: those that they should be, up to rounding.
        start: where both come from: what they have gone is compared, not where they are.

    Raises:
        AssertionError: if they have not.
    """
    for our, peer, first in zip(ours, peers, start, strict=True):
        torch.testing.assert_close(our - first, peer - first, rtol=1e-3, atol=1e-6)


def measure(model: nn.Module, arguments: Namespace, device: torch.device) -> pd.DataFrame:
    """Return the seconds of a step of each optimizer, a row for each round."""
    optimizers, weights = contestants(model)
    with torch.no_grad():
        for optimizer in optimizers.values():
            for _ in range(WINDOWS):
                window(optimizer)
        for ours, peer in SAME_WORK.items():
            require_same(weights[ours], weights[peer], list(model.parameters()))

    def one_round(number: int) -> dict[str, float]:
        names = list(optimizers)[:: 1 if number % 2 == 0 else -1]
        return {n: seconds_of(partial(window, optimizers[n]), device) / K for n in names}

    return repeated(one_round, arguments.rounds, arguments.seconds)[list(optimizers)]


def spread(seconds: pd.DataFrame, name: str, beside: str) -> str:
    """Return the ratio of two optimizers' times, with its quartiles."""
    return cell(seconds[name] / seconds[beside], 0.25, 0.75)


def rows(seconds: pd.DataFrame) -> list[dict[str, str]]:
    """Return the table: a row for each pair."""

    def row(name: str, beside: str, same: str) -> dict[str, str]:
        return {
            "optimizer": name,
            "beside": beside,
            "same weights": same,
            "ratio": spread(seconds, name, beside),
        }

    return [row(*pair, "yes") for pair in SAME_WORK.items()] + [
        row(*pair, "other work") for pair in OTHER_WORK
    ]


def main() -> int:
    """Compare, measure and report."""
    parser = parser_of("optimizers")
    add_rounds(parser, rounds=40, seconds=60, each="all")
    add_network(parser)
    parser.add_argument("--model", default="resnet34", help="whose parameters are updated")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    # Of adabound, which was written for torch 1.4.
    warnings.filterwarnings("ignore", "This overload of")
    try:
        device = pick_device(arguments.device, "--device")
        settings = settings_of(arguments.model, arguments.width)
        model = new_model(settings, noise_set(2, 0, device, 1, 1))
    except UserError as error:
        return mistaken("optimizers", error)
    seconds = measure(model, arguments, device)
    how = (
        f"On the parameters of {arguments.model} of width {arguments.width:g}: "
        f"{sum(p.numel() for p in model.parameters()):,} in "
        f"{sum(1 for _ in model.parameters())} tensors. Medians over {len(seconds)} rounds of {K} "
        "steps each, in parentheses the quartiles; ratios are taken within a round. `yes`: after "
        f"{K * WINDOWS} steps both had come to the same weights, up to rounding. Adam takes "
        "`foreach` by default on CUDA alone, AdaBound everywhere."
    )
    goals = [
        Goal(f"step of {ours}", peer, f"{spread(seconds, ours, peer)} times its time")
        for ours, peer in SAME_WORK.items()
    ]
    tables = {"A step, as a multiple of the peer's time:": rows(seconds)}
    versions = versions_of("pytorch-optimizer", "adabound")
    report("optimizers", arguments.output, device, how, goals, tables, {"step": seconds}, versions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
