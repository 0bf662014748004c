"""Compare a run of each method of the paper with a plain loop."""

import copy
import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    REPOSITORY,
    TINY,
    Compose,
    Prompt,
    also_slow,
    assert_same_weights,
    history_of,
    weights_of,
)
from reference import alphas
from torch.nn.functional import cross_entropy

import train
from phaseavg.averaging import recompute_batchnorm
from phaseavg.config import Settings
from phaseavg.optim import Lookahead
from phaseavg.training.evaluation import evaluate
from phaseavg.training.parts import load_data, new_model

UNSAVED = (*TINY, "checkpoint_seconds=1000")  # no checkpoints within phases

OPTIMIZERS, AVERAGINGS = (
    sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))
    for group in ("optimizer", "averaging")
)
PHASE_ENDS = slice(1, 4, 2)  # the epochs of TINY that end its first two phases


@pytest.mark.parametrize(
    ("optimizer", "averaging"),
    [
        ("sgd", "phasewise"),
        *also_slow(*((name, "phasewise") for name in OPTIMIZERS if name != "sgd")),
        *also_slow(*(("lookahead", name) for name in AVERAGINGS if name != "phasewise")),
    ],
)
def test_every_optimizer_and_every_averaging_learns(
    compose_settings: Compose, optimizer: str, averaging: str
) -> None:
    settings = compose_settings(
        *UNSAVED,
        "model.width=0.125",
        "batch_size=50",
        "schedule.epochs=[3,1,1]",
        "evaluation.every=0",  # evaluate at phase ends only
        f"optimizer={optimizer}",
        f"averaging={averaging}",
    )
    result = train.run(settings)
    first, *_, last = history_of(settings)
    assert last["train"]["loss"] < first["train"]["loss"] - 0.02
    assert result["test_error"] < 85
    for kind in ("with_bn_pass", "without_bn_pass"):  # of every method, last and best
        assert result[kind]["best_test_error"] <= result[kind]["test_error"]
    assert ("average" in last) == (averaging != "none")
    if "average" in last:
        assert sum(last["average"]["coefficients"]) == pytest.approx(1, abs=1e-9)


def train_plainly(
    settings: Settings, new_optimizer: Callable[..., torch.optim.Optimizer]
) -> tuple[torch.nn.Module, list[float]]:
    """Train the phases; return the network and the test error before each end of an epoch.

    An average over one epoch equals its weights. With phases of that length, an average continues
    with the slow weights of Lookahead.
    """
    data = load_data(settings, torch.device("cpu"))
    model = new_model(settings, data)
    optimizer = new_optimizer(model.parameters())
    step, errors = 0, []
    averaged = "NoAveraging" not in settings.averaging["_target_"]
    for epochs, learning_rate in zip(settings.schedule["epochs"], (0.1, 0.01, 0.001), strict=True):
        if settings.optimizer_state == "reset":
            optimizer = new_optimizer(model.parameters())
        optimizer.param_groups[0]["lr"] = learning_rate
        for _ in range(epochs):
            model.train()
            for images, labels in data.train_batches(step, step + data.steps_per_epoch):
                optimizer.zero_grad()
                cross_entropy(model(images), labels).backward()
                optimizer.step()
                step += 1
            tested = copy.deepcopy(model)
            if isinstance(optimizer, Lookahead):
                state = optimizer.state
                for copied, p in zip(tested.parameters(), model.parameters(), strict=True):
                    copied.data.copy_(state[p]["slow_weights"])
            errors.append(evaluate(tested, data.test_batches()).error)
        if averaged:
            model.load_state_dict(tested.state_dict())
            recompute_batchnorm(model, data.batchnorm_batches(len(errors)))
            tested = model
            optimizer.restart()
    return tested, errors


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4)


def lookahead(params: Any) -> Lookahead:
    return Lookahead(sgd(params), k=5, alpha=0.5)


@pytest.mark.parametrize(
    ("overrides", "new_optimizer"),
    [
        (["averaging=none"], sgd),
        (["averaging=none", "optimizer_state=reset"], sgd),
        (["averaging=none", "optimizer=lookahead"], lookahead),  # k = 5 does not divide the 8 steps
        (["averaging=uniform", "optimizer=lookahead", "schedule.epochs=[1,1,1]"], lookahead),
    ],
)
def test_a_run_is_a_plain_training_loop(
    compose_settings: Compose, overrides: list[str], new_optimizer: Any
) -> None:
    settings = compose_settings(*UNSAVED, "evaluation.every=1", "save_weights=true", *overrides)
    train.run(settings)
    model, errors = train_plainly(settings, new_optimizer)
    assert [line["weights"]["error"] for line in history_of(settings)] == errors
    assert_same_weights(weights_of(settings), model.state_dict())


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


def test_recorded_coefficients_reproduce_the_average(compose_settings: Compose) -> None:
    observers = ("+averaging@observers.swa=uniform", "+averaging@observers.rna=rna")
    settings = compose_settings(*UNSAVED, *observers)
    train.run(settings)
    learnt = []
    for line in history_of(settings)[PHASE_ENDS]:
        swa, rna = line["observers"]["swa"], line["observers"]["rna"]
        expected = alphas(0.9, 2).tolist()
        assert line["average"]["coefficients"] == pytest.approx(expected, rel=1e-12)
        assert swa["coefficients"] == [0.5, 0.5]
        assert sum(rna["coefficients"]) == pytest.approx(1)
        assert rna["solved_by"] == "solve"
        assert rna["condition"] > 1
        learnt.append(rna["coefficients"])
    assert learnt[0] != learnt[1]


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
    real, left = os.fsync, 3

    def full(number: int) -> None:
        nonlocal left
        if "/.snapshot-" in str(Path(f"/proc/self/fd/{number}").resolve()):
            left -= 1
            if left == 0:
                raise OSError(28, "No space left on device")
        real(number)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
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
