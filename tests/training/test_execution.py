"""What is asked of torch before a run, and what a run that is not compiled does not import."""

import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from conftest import REPOSITORY, TINY, Prompt
from torch import nn
from torch.optim import SGD, Optimizer

from phaseavg.config import Execution, Settings
from phaseavg.errors import UserError
from phaseavg.training import execution as module
from phaseavg.training.compiler import leave_compiler_out
from phaseavg.training.execution import ask_for_determinism, laid_out, prepare

Compose = Callable[..., Settings]

SLOW = {
    *("torch._dynamo", "torchvision", "triton", "timm", "wandb"),
    *("matplotlib", "pandas", "sklearn", "scipy", "joblib", "sympy"),
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
        ask_for_determinism(Execution(compile=compiled))
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


def threads_of(folder: Path) -> set[int]:
    """Return with how many threads the runs below a folder were made."""
    results = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    return {made["execution"]["threads"] for result in results for made in result["provenance"]}


def test_a_run_has_the_threads_that_it_asks_for_and_else_those_of_its_process(
    prompt: Prompt, tmp_path: Path
) -> None:
    short = (*TINY, "schedule.epochs=[1,1,1]", "averaging=none,phasewise")
    status, out, err = prompt("-m", *short, "execution.threads=2", "runs_dir=two")
    assert (status, err) == (0, "")
    assert out.count("1 epochs being shared") == 2  # left under the threads that they ask for
    assert prompt("-m", *short, "runs_dir=own")[0] == 0
    assert threads_of(tmp_path / "two") == {2}
    assert threads_of(tmp_path / "own") == {1}


def test_no_threads_is_one_line(prompt: Prompt) -> None:
    status, _, err = prompt(*TINY, "execution.threads=0")
    assert status == 2
    assert err == "train.py: execution.threads=0: input should be greater than or equal to 1\n"


@pytest.fixture
def switches() -> Iterator[None]:
    """Leave torch as other tests expect it."""
    yield
    ask_for_determinism(Execution())
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def test_a_profile_is_a_choice_of_options_and_each_of_them_goes_above_it(
    compose_settings: Compose, switches: None
) -> None:
    fast = compose_settings(*TINY, "profile=fast", "execution.device=cpu")
    assert (fast.execution.precision, fast.execution.graph) == ("auto", "auto")
    settings, device = prepare(fast)
    execution = settings.execution
    assert device == torch.device("cpu")
    assert (execution.precision, execution.graph, execution.channels_last) == ("fp32", False, True)
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()

    prepare(compose_settings(*TINY, "profile=fast", "execution.deterministic=true"))
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()
    named = compose_settings(*TINY, "profile=deterministic").execution
    assert compose_settings(*TINY).execution == Execution() == named


def test_precisions_set_the_switches_both_ways(compose_settings: Compose, switches: None) -> None:
    for precision in ("tf32", "fp32"):
        prepare(compose_settings(*TINY, f"execution.precision={precision}"))
        found = {torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32}
        assert found == {precision == "tf32"}


@pytest.mark.parametrize("units", [True, False])
def test_emulated_bf16_is_announced(
    compose_settings: Compose,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    units: bool,
) -> None:
    monkeypatch.setattr(module, "_has_bf16_units", lambda: units)
    prepare(compose_settings(*TINY, "execution.precision=bf16", "execution.device=cpu"))
    said = capsys.readouterr().out
    assert said.startswith("execution.precision=bf16: this CPU has no bf16 units") != units


def test_a_cpu_has_no_cuda_graphs(prompt: Prompt) -> None:
    status, _, err = prompt(*TINY, "execution.graph=true", "execution.device=cpu")
    assert (status, err) == (
        2,
        "train.py: execution.graph=true: cpu has no CUDA graphs; choices: false, auto\n",
    )


def test_layers_too_narrow_for_the_layout_are_refused_before_torch_crashes() -> None:
    execution, cpu = Execution(channels_last=True), torch.device("cpu")
    with pytest.raises(UserError, match=r"channels_last=true: .* here one has 7; choices: false"):
        laid_out(nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)), execution, cpu)
    model = laid_out(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), execution, cpu)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    """Else each of its pages would be asked for again."""
    script = """
import ctypes, resource, sys, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
from phaseavg.training.execution import keep_freed_memory
keep_freed_memory(sys.argv[1] == "keep")
torch.set_num_threads(1)
def step():
    return torch.ones(12_000_000).sum()
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", script, how], cwd=REPOSITORY, capture_output=True, text=True
            ).stdout
        )
        for how in ("keep", "give back")
    }
    pages = 48_000_000 // resource.getpagesize()  # of a step
    assert faults["keep"] < 2 * pages
    assert faults["give back"] > 4 * pages
