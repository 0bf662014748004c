"""A dry run, against what the run then does."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Prompt, untimed
from torch import nn

from phaseavg.config import Settings
from phaseavg.training.parts import assemble
from phaseavg.training.preview import (
    _time,
    _with_prefix,
    describe_optimizer,
    training_flops,
)


def lines_of(out: str) -> dict[str, str]:
    """Return the lines of a dry run by their first words."""
    first, *lines = out.splitlines()
    assert first == "measuring a few steps …"
    return dict(re.split(r"  +", line, maxsplit=1) for line in lines)


def test_a_dry_run_describes_the_run_and_writes_nothing(prompt: Prompt, tmp_path: Path) -> None:
    status, out, err = prompt(*TINY, "dry_run=true")
    assert (status, err) == (0, "")
    assert not list(tmp_path.iterdir())
    said = lines_of(out)
    assert said["run"].startswith("runs/digits-cnn13-sgd-phasewise-seed0-")
    assert said["run"].endswith("(not started)")
    assert "1,000 images to train and 797 to test, 1×8×8, 10 classes" in said["data"]
    assert "CNN13(width=0.03, pools=1): 4,388 parameters" in said["network"]
    assert "Phasewise(weights=Exponential(gamma0=0.9))" in said["averaging"]
    assert re.search(r"takes about \d\S+ kB on cpu", said["averaging"])
    assert said["phase 1"] == "epochs 1-2: 16 steps at learning rate 0.1"
    assert said["phase 2"] == "epochs 3-4: 16 steps at learning rate 0.01"
    assert said["phase 3"] == "epoch 5: 8 steps at learning rate 0.001"
    assert said["in all"].startswith("5 epochs, 40 steps of 128 images, 5,000 images, ")
    assert re.match(r"\S+ [MG]B at its peak so far, on cpu", said["memory"])
    assert re.match(r"about \S+ \S+ of training, at \S+ ms a step on ", said["time"])


def test_a_dry_run_describes_every_method(prompt: Prompt) -> None:
    _, out, _ = prompt(
        *TINY,
        "dry_run=true",
        "optimizer=lookahead",
        "schedule=decayed",
        "schedule.epochs=[2,2,1]",
        "averaging=rna",
        "+averaging@observers.swa=uniform",
        "+averaging@observers.all=end",
        "averaging/weights@observers.all.weights=rna",
    )
    said = lines_of(out)
    assert said["optimizer"] == (
        "Lookahead: k 5, alpha 0.5; around SGD: lr 0.1, momentum 0.9; weight decay "
        "0.0001 (coupled, L2 in the gradient) on all parameters"
    )
    size = 4388 * 4 / 1000  # kB of a snapshot; θ_0 and two epochs, or all five
    assert re.fullmatch(
        rf"Phasewise\(weights=RNA\(rho=1e-05\)\); takes about {3 * size:.3g} kB on files in "
        r"runs/digits-cnn13-lookahead-phasewise_rna-seed0-\w+/snapshots",
        said["averaging"],
    )
    assert said["observers.swa"].startswith("Phasewise(weights=Uniform()); takes about ")
    assert f"takes about {6 * size:.3g} kB on files in " in said["observers.all"]
    assert said["observers.all"].endswith("/snapshots")
    # γ = γ0^(80/2): the second of two epochs at (1 − γ) / (1 − γ²) = 1 / (1 + γ) of the rate.
    assert said["phase 1"].endswith(f"at learning rate 0.1 to {0.1 / (1 + 0.9**40):.3g}")
    assert said["phase 3"].endswith("8 steps at learning rate 0.001")


@pytest.mark.slow
def test_a_dry_run_changes_nothing_of_the_run_that_follows(prompt: Prompt, tmp_path: Path) -> None:
    def metrics(folder: str) -> list[dict[str, Any]]:
        (path,) = tmp_path.glob(f"{folder}/*/metrics.jsonl")
        return untimed([json.loads(line) for line in path.read_text().splitlines()])

    prompt(*TINY, "runs_dir=undisturbed")
    prompt(*TINY, "dry_run=true")
    prompt(*TINY)  # in the same process
    assert metrics("runs") == metrics("undisturbed")


def test_a_dry_run_of_a_finished_run_says_so(prompt: Prompt) -> None:
    prompt(*TINY)
    status, out, _ = prompt(*TINY, "dry_run=true")
    assert status == 0
    assert "finished before" in out


def test_a_dry_run_says_that_a_run_would_resume(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("phaseavg.training.loop.learning_rate", lambda *_: 1 / 0)
        prompt(*TINY)
    _, out, _ = prompt(*TINY, "dry_run=true")
    assert lines_of(out)["run"].endswith("(started: would resume)")


def test_operations_are_three_forward_passes_a_multiply_add_being_two(
    compose_settings: Callable[..., Settings],
) -> None:
    data, _, state = assemble(compose_settings(*TINY), torch.device("cpu"))
    forward, size = 0, 8
    for module in state.model.modules():
        if isinstance(module, nn.Conv2d):
            size -= 2 * (module.padding == (0, 0))
            forward += 2 * size * size * module.weight.numel()
        elif isinstance(module, nn.MaxPool2d):
            size //= 2
        elif isinstance(module, nn.Linear):
            forward += 2 * module.weight.numel()
    assert training_flops(state.model, data) == 3 * forward


class Elsewhere(torch.optim.SGD):
    """An optimizer from anywhere."""


OPTIMIZERS = [
    (
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        "SGD: lr 0.1, momentum 0.9; weight decay 0.0005 (coupled, L2 in the gradient) on all "
        "parameters",
    ),
    (torch.optim.SGD, {"lr": 0.1}, "SGD: lr 0.1; no weight decay"),
    (
        torch.optim.Adam,
        {"lr": 1e-3, "weight_decay": 1e-4, "amsgrad": True},
        "Adam: lr 0.001, betas (0.9, 0.999), eps 1e-08, amsgrad True; weight decay 0.0001 "
        "(coupled, L2 in the gradient) on all parameters",
    ),
    (
        torch.optim.AdamW,
        {"lr": 1e-3, "weight_decay": 1e-4},
        "AdamW: lr 0.001, betas (0.9, 0.999), eps 1e-08; weight decay 0.0001 (decoupled from the "
        "gradient) on all parameters",
    ),
    (
        Elsewhere,
        {"lr": 0.1, "weight_decay": 1e-4},
        "Elsewhere: lr 0.1; weight decay 0.0001 (as Elsewhere defines it) on all parameters",
    ),
]


@pytest.mark.parametrize(("make", "options", "words"), OPTIMIZERS)
def test_an_optimizer_is_described_with_its_kind_of_weight_decay(
    make: Callable[..., torch.optim.Optimizer], options: dict[str, Any], words: str
) -> None:
    assert describe_optimizer(make(nn.Linear(2, 3).parameters(), **options)) == words


def test_weight_decay_is_described_by_parameter_group() -> None:
    model = nn.Linear(2, 3)
    groups = [
        {"params": [model.weight], "weight_decay": 1e-4},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    assert describe_optimizer(torch.optim.SGD(groups, lr=0.1)) == (
        "SGD: lr 0.1; weight decay 0.0001 (coupled, L2 in the gradient) on 1 of 2 tensors"
    )


def test_a_run_begins_by_describing_its_optimizer(prompt: Prompt) -> None:
    _, out, _ = prompt(*TINY, "schedule.epochs=[1,1,1]")
    assert (
        "weight decay 0.0001 (coupled, L2 in the gradient) on all parameters"
        in (out.splitlines()[1])
    )


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0359, "36 ms"),
        (1.6, "1.6 s"),
        (85, "85 s"),
        (3599, "60 min"),
        (7300, "2 h"),
        (34 * 3600, "34 h"),
        (27.7 * 86400, "28 days"),
    ],
)
def test_estimates_have_two_digits(seconds: float, words: str) -> None:
    assert _time(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (17_880, "17.9 kB"), (2.16e9, "2.16 GB")]
)
def test_bytes_have_a_prefix(count: float, words: str) -> None:
    assert _with_prefix(count, "B") == words
