"""Compare runs with a plain loop, which test_methods_in_float64 compares with the paper."""

import itertools
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conftest import TINY, Compose, Prompt, assert_same_weights, history_of, weights_of
from torch.nn.functional import cross_entropy
from victims import and_at

import train
from phaseavg.averaging import Averager, NoAveraging, Phasewise, recompute_batchnorm
from phaseavg.config import Settings
from phaseavg.optim import Lookahead
from phaseavg.training.evaluation import evaluate
from phaseavg.training.parts import load_data, new_model

DECAYED = ("schedule=decayed", "schedule.shape.per=step", "schedule.epochs=[2,2,1]")
UNSAVED = (*TINY, "checkpoint_seconds=1000")  # no checkpoints within phases


def train_plainly(
    settings: Settings,
    new_optimizer: Callable[..., torch.optim.Optimizer],
    kind: type[Averager],
    processes: int = 1,
) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    """Train the phases with public classes; return the network and the metrics of each epoch.

    Each process's share of a batch has BatchNorm statistics of its own; the first's are kept.
    """
    data = load_data(settings, torch.device("cpu"))
    model = new_model(settings, data)
    optimizer = new_optimizer(model.parameters())
    averager = kind(model, settings.schedule["epochs"])
    slow = isinstance(optimizer, Lookahead)
    step, lines = 0, []

    def test(network: torch.nn.Module) -> dict[str, float]:
        found = evaluate(network, data.test_batches())
        return {"loss": found.loss, "error": found.error}

    def after_batchnorm(network: torch.nn.Module) -> dict[str, float]:
        batches = data.batchnorm_batches(len(lines) + 1, settings.batchnorm_batches)
        recompute_batchnorm(network, batches)
        return test(network)

    for epochs, learning_rate in zip(settings.schedule["epochs"], (0.1, 0.01, 0.001), strict=True):
        if settings.optimizer_state == "reset":
            if slow:
                optimizer.finish()
            optimizer = new_optimizer(model.parameters())
        optimizer.param_groups[0]["lr"] = learning_rate
        gamma, left = 0.9 ** (80 / epochs), epochs  # of equation 6, in which `left` is T − t + 1
        for _ in range(epochs):
            model.train()
            total, wrong = 0.0, 0
            for images, labels in data.train_batches(step, step + data.steps_per_epoch):
                optimizer.zero_grad()
                first = {name: buffer.clone() for name, buffer in model.named_buffers()}
                for rank in reversed(range(processes)):
                    for name, buffer in model.named_buffers():
                        buffer.copy_(first[name])
                    share = labels[rank::processes]
                    logits = model(images[rank::processes])
                    loss = cross_entropy(logits, share) * (len(share) / len(labels))
                    loss.backward()
                    total += loss.item() * len(labels)  # the last batch of an epoch is smaller
                    wrong += (logits.argmax(1) != share).sum().item()
                if "shape" in settings.schedule:
                    factor = (1 - gamma**left) / (1 - gamma**epochs)
                    optimizer.param_groups[0]["lr"] = learning_rate * factor
                optimizer.step()
                step += 1
                left -= 1 / data.steps_per_epoch
            line = {"train": {"images": 1000, "loss": total / 1000, "error": wrong / 10}}
            with optimizer.evaluation_weights() if slow else nullcontext():
                line["weights"] = test(model)
                line["bn"] = after_batchnorm(deepcopy(model))
                if averager.epoch_end(model):
                    line["average"] = after_batchnorm(model)
                    if slow:
                        optimizer.restart()
            lines.append(line)
    if slow:
        optimizer.finish()
    return model, lines


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4)


def lookahead(params: Any) -> Lookahead:
    return Lookahead(sgd(params), k=5, alpha=0.5)


@pytest.mark.parametrize(
    ("overrides", "new_optimizer", "kind"),
    [
        (["averaging=none"], sgd, NoAveraging),
        (["averaging=none", "optimizer_state=reset"], sgd, NoAveraging),
        (["averaging=phasewise", "batchnorm_batches=3"], sgd, Phasewise),
        (["averaging=none", *DECAYED], sgd, NoAveraging),
        # k = 5 divides neither an epoch's 8 steps nor a phase.
        (["averaging=none", "optimizer=lookahead"], lookahead, NoAveraging),
        (
            ["averaging=none", "optimizer=lookahead", "optimizer_state=reset"],
            lookahead,
            NoAveraging,
        ),
        (["averaging=phasewise", "optimizer=lookahead"], lookahead, Phasewise),
    ],
)
def test_a_run_is_a_plain_training_loop(
    compose_settings: Compose, overrides: list[str], new_optimizer: Any, kind: type[Averager]
) -> None:
    evaluated = ("evaluation.every=1", "evaluation.batchnorm_every=1")
    settings = compose_settings(*UNSAVED, *evaluated, "save_weights=true", *overrides)
    train.run(settings)
    model, expected = train_plainly(settings, new_optimizer, kind)
    assert_same_weights(weights_of(settings), model.state_dict())
    for line, plain in zip(history_of(settings), expected, strict=True):
        assert ("average" in line) == ("average" in plain)
        loss = plain["train"].pop("loss")
        assert line["train"].pop("loss") == pytest.approx(loss, rel=1e-6)
        for key, values in plain.items():
            assert {name: line[key][name] for name in values} == values, (line["epoch"], key)


def test_non_finite_fast_weights_are_a_divergence(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lookahead evaluates its slow weights, which stay finite until the window ends."""
    step, calls = torch.optim.SGD.step, itertools.count(1)

    def overflowing(self: torch.optim.SGD, closure: Any = None) -> Any:
        loss = step(self, closure)
        if next(calls) == 8:  # the last step of the epoch, the third of a window of five
            self.param_groups[0]["params"][0].data.fill_(math.inf)
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", overflowing)
    result = train.run(compose_settings(*UNSAVED, "optimizer=lookahead", "averaging=none"))
    assert result["status"] == "diverged"
    assert (result["reason"], result["epoch"]) == ("the weights are no longer finite", 1)


def test_without_a_batchnorm_pass_the_average_has_the_statistics_of_the_last_weights(
    compose_settings: Compose,
) -> None:
    settings = compose_settings(*UNSAVED, "schedule.epochs=[1]", "schedule.factors=[1]")
    train.run(settings)
    (line,) = history_of(settings)
    # An average over one epoch equals its weights; only the BatchNorm statistics may differ.
    assert line["average"]["without_bn"] == line["weights"]
    assert line["average"]["loss"] == line["bn"]["loss"] != line["weights"]["loss"]


def test_a_run_resumes_after_a_snapshot_could_not_be_written(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def is_snapshot(number: int) -> bool:
        return Path(f"/proc/self/fd/{number}").resolve().name.startswith(".snapshot-")

    full = Mock(side_effect=OSError(28, "No space left on device"))
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", and_at(3, os.fsync, full, due=is_snapshot))
        status, _, err = prompt(*TINY, "averaging=rna", "averaging.weights.rho=0.1")
    assert status == 1
    assert err.count("\n") == 1
    assert "/snapshots/snapshot-0002-" in err
    assert "No space left on device" in err
    assert not list(tmp_path.rglob("*.part"))
    status, out, _ = prompt(*TINY, "averaging=rna", "averaging.weights.rho=0.1")
    assert status == 0
    assert "from step 15" in out  # the last step before the epoch's end


def test_singular_equations_are_recorded(compose_settings: Compose) -> None:
    # With a tiny learning rate, the weights of all epochs are equal.
    overrides = ("averaging=rna", "optimizer.lr=1e-300", "optimizer.weight_decay=0")
    settings = compose_settings(*UNSAVED, *overrides)
    train.run(settings)
    average = history_of(settings)[1]["average"]
    assert (average["solved_by"], average["condition"]) == ("uniform", None)
