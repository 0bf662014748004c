"""Compare a run of each method of the paper with a plain loop."""

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import REPOSITORY, TINY, Prompt
from reference import alphas
from torch.nn.functional import cross_entropy

import train
from phaseavg.config import Settings
from phaseavg.errors import Diverged
from phaseavg.optim import Lookahead
from phaseavg.runs.folder import RunFolder
from phaseavg.tracking import Tracking
from phaseavg.training.evaluation import evaluate
from phaseavg.training.loop import train as train_loop
from phaseavg.training.parts import assemble, load_data, new_model
from phaseavg.training.sharing import Sharing

Compose = Callable[..., Settings]

UNSAVED = (*TINY, "checkpoint_seconds=1000")  # no checkpoints within phases

OPTIMIZERS, AVERAGINGS = (
    sorted(path.stem for path in (REPOSITORY / "conf" / group).glob("*.yaml"))
    for group in ("optimizer", "averaging")
)
PHASE_ENDS = slice(1, 4, 2)  # the epochs of TINY that end its first two phases


def history_of(settings: Settings) -> list[dict[str, Any]]:
    lines = (settings.run_folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights_of(settings: Settings) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(settings.run_folder / "weights.safetensors")


def in_folder(settings: Settings, name: str) -> Settings:
    return settings.model_copy(update={"runs_dir": settings.runs_dir / name})


PAIRS = [
    (optimizer, averaging)
    for optimizer in OPTIMIZERS
    for averaging in AVERAGINGS
    if averaging == "phasewise" or optimizer in ("sgd", "lookahead")
]
"""All optimizers with one averaging, all averagings with SGD and Lookahead.

Only Lookahead has weights of its own, which an average must replace as well.
"""


@pytest.mark.parametrize(
    ("optimizer", "averaging"),
    [
        pair if pair == ("sgd", "phasewise") else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in PAIRS
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
    settings: Settings, new_optimizer: Callable[..., torch.optim.Optimizer], reset: bool = False
) -> tuple[torch.nn.Module, list[float]]:
    """Train TINY's phases without averaging; return the network and the test error per epoch."""
    data = load_data(settings, torch.device("cpu"))
    model = new_model(settings, data)
    optimizer = new_optimizer(model.parameters())
    step, errors = 0, []
    for epochs, learning_rate in ((2, 0.1), (2, 0.01), (1, 0.001)):
        if reset:
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
    return tested, errors


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-4)


def lookahead(params: Any) -> Lookahead:
    return Lookahead(sgd(params), k=5, alpha=0.5)


@pytest.mark.parametrize(
    ("overrides", "new_optimizer", "reset"),
    [
        ([], sgd, False),
        (["optimizer_state=reset"], sgd, True),
        (["optimizer=lookahead"], lookahead, False),  # k = 5 does not divide the 8 steps
    ],
)
def test_a_run_without_averaging_is_a_plain_training_loop(
    compose_settings: Compose, overrides: list[str], new_optimizer: Any, reset: bool
) -> None:
    settings = compose_settings(*UNSAVED, "averaging=none", "save_weights=true", *overrides)
    result = train.run(settings)
    model, errors = train_plainly(settings, new_optimizer, reset)
    assert [line["weights"]["error"] for line in history_of(settings)] == errors
    assert result["test_error"] == errors[-1]
    actual = weights_of(settings)
    for name, tensor in model.state_dict().items():
        assert torch.equal(actual[name], tensor), name


def test_an_average_replaces_fast_and_slow_weights_of_lookahead(
    compose_settings: Compose,
) -> None:
    """Otherwise, the end of the window would restore half of the old slow weights."""
    settings = compose_settings(*UNSAVED, "optimizer=lookahead", "schedule.epochs=[1,1,1]")
    data, schedule, state = assemble(settings, torch.device("cpu"))
    replaced, starts = [], []
    epoch_end, step = state.averager.epoch_end, state.optimizer.step

    def recording_epoch_end(model: torch.nn.Module) -> bool:
        done = epoch_end(model)
        replaced.append([p.detach().clone() for p in model.parameters()])
        return done

    def recording_step(closure: Any = None) -> Any:
        if state.step % state.steps_per_epoch == 0 < state.step:
            parameters = list(state.model.parameters())
            slow = [state.optimizer.state[p]["slow_weights"].clone() for p in parameters]
            starts.append((slow, [p.detach().clone() for p in parameters]))
        return step(closure)

    state.averager.epoch_end = recording_epoch_end  # type: ignore[method-assign]
    state.optimizer.step = recording_step  # type: ignore[method-assign]
    train_state(state, data, schedule, settings)
    assert len(replaced) == 3
    for average, (slow, fast) in zip(replaced[:2], starts, strict=True):
        for theta, phi, expected in zip(fast, slow, average, strict=True):
            assert torch.equal(theta, expected)
            assert torch.equal(phi, expected)


def train_state(state: Any, data: Any, schedule: Any, settings: Settings) -> None:
    tracking = Tracking(settings.recipe(), settings.record(), [])
    with RunFolder(settings.run_folder) as folder:
        sharing = Sharing(settings, data.device)
        train_loop(state, data, schedule, settings, folder, tracking, sharing)


def test_non_finite_fast_weights_are_a_divergence(compose_settings: Compose) -> None:
    """Lookahead evaluates its slow weights, which stay finite until the window ends."""
    settings = compose_settings(*UNSAVED, "optimizer=lookahead", "averaging=none")
    data, schedule, state = assemble(settings, torch.device("cpu"))
    step = state.optimizer.inner.step

    def overflowing(closure: Any = None) -> Any:
        loss = step(closure)
        if state.step == 7:  # the last step of the epoch, the third of a window of five
            next(state.model.parameters()).data.fill_(math.inf)
        return loss

    state.optimizer.inner.step = overflowing
    with pytest.raises(Diverged) as diverged:
        train_state(state, data, schedule, settings)
    assert diverged.value.outcome["reason"] == "the weights are no longer finite"
    assert diverged.value.outcome["epoch"] == 1


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
