"""What is asked of torch before a run, and what a run that is not compiled does not import."""

import functools
import os
import subprocess
import sys

import pytest
import torch
import torch._inductor.config
from conftest import REPOSITORY, TINY
from torch.optim import SGD, Optimizer

from phaseavg.training.execution import leave_compiler_out, make_deterministic

SLOW = {
    *("torch._dynamo", "torchvision", "triton", "timm", "wandb"),
    *("matplotlib", "pandas", "sklearn", "scipy", "joblib"),
}
"""Packages that take a good part of a second to import, or more."""

TRAIN_AND_TELL = f"""
import sys
import train
from phaseavg.cli import command_line
status = command_line(train.main, train.CONF)
print("status", status, "imported", sorted({SLOW} & sys.modules.keys()))
"""


def test_training_imports_nothing_slow_that_it_does_not_use(tmp_path) -> None:
    folders = (f"runs_dir={tmp_path}/runs", f"records_dir={tmp_path}/records")
    short = ("schedule.epochs=[1,1,1]", "optimizer=sgd,amsgrad,adabound,lookahead", "share=false")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_TELL, "-m", *TINY, *short, *folders],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines()[-2:] == [
        "sweep: 4 finished, 0 there already",
        "status 0 imported []",
    ], done.stderr


@pytest.mark.parametrize("compiled", [False, True])
def test_algorithms_are_deterministic_and_so_is_the_compiler_if_there_is_one(
    compiled: bool,
) -> None:
    torch.set_deterministic_debug_mode("default")
    with torch._inductor.config.patch(deterministic=False):
        make_deterministic(compiled)
        assert torch._inductor.config.deterministic is compiled
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_step_without_the_compiler_has_gradients_only_if_it_is_to_be_differentiable() -> None:
    leave_compiler_out()
    weight = torch.ones(1, requires_grad=True)
    SGD([weight], lr=0.1).step()
    weight.grad = torch.tensor([2.0])
    SGD([weight], lr=0.1).step()  # of a leaf, in place: with gradients torch would refuse it
    assert weight.item() == pytest.approx(0.8)

    weight = torch.ones(1, requires_grad=True)
    moved = weight.clone()
    moved.grad = 2 * weight
    SGD([moved], lr=0.1, differentiable=True).step()
    moved.backward()
    assert weight.grad.item() == pytest.approx(0.8)  # d(w - 0.1 · 2w)/dw


def test_methods_that_do_not_import_the_compiler_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @functools.wraps(Optimizer.zero_grad)
    def counting(self: Optimizer, set_to_none: bool = True) -> None:
        calls.append(set_to_none)

    calls: list[bool] = []
    leave_compiler_out()
    step = SGD.step
    monkeypatch.setattr(Optimizer, "zero_grad", counting)
    leave_compiler_out()
    assert SGD.step is step
    SGD([torch.ones(1, requires_grad=True)]).zero_grad()
    assert calls == [True]
