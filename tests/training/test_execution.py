"""Devices, precisions, threads and layouts of runs, and what a run imports."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, TINY, Compose, Prompt
from torch import nn

from phaseavg.config import Execution
from phaseavg.errors import UserError
from phaseavg.training.execution import apply_layout, prepare
from phaseavg.training.parts import assemble
from phaseavg.training.step import new_step

SLOW = {"torchvision", "timm", "wandb", "matplotlib", "pandas", "sklearn", "scipy", "joblib"}
"""Packages that are slow to import."""

TRAIN_AND_LIST_MODULES = f"""
import sys
import train
from phaseavg.cli import command_line
status = command_line(train.main)
print("status", status, "imported", sorted({SLOW} & sys.modules.keys()))
"""


@pytest.mark.slow
def test_training_does_not_import_unused_slow_packages(tmp_path) -> None:
    folders = (f"runs_dir={tmp_path}/runs", f"records_dir={tmp_path}/records")
    short = ("schedule.epochs=[1,1,1]", "optimizer=sgd,amsgrad,adabound,lookahead", "share=false")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_LIST_MODULES, "-m", *TINY, *short, *folders],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines()[-2:] == [
        "sweep: 4 finished, 0 finished before",
        "status 0 imported []",
    ], done.stderr


@pytest.mark.slow
def test_a_run_uses_its_number_of_threads_or_the_default(prompt: Prompt, tmp_path: Path) -> None:
    short = (*TINY, "schedule.epochs=[1,1,1]", "averaging=none,phasewise")
    status, out, err = prompt("-m", *short, "execution.threads=2", "runs_dir=two")
    assert (status, err) == (0, "")
    assert out.count("1 epochs shared with other runs") == 2  # same number of threads
    assert prompt("-m", *short, "runs_dir=own")[0] == 0
    for folder, threads in (("two", 2), ("own", 1)):
        for path in tmp_path.glob(f"{folder}/*/result.json"):
            (entry,) = json.loads(path.read_text())["provenance"]
            assert entry["execution"]["threads"] == threads


@pytest.fixture
def switches() -> Iterator[None]:
    """Set torch's global flags as a run does by default, after a test."""
    yield
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def test_profiles_set_options_that_overrides_can_change(
    compose_settings: Compose, switches: None
) -> None:
    fast = ("profile=fast", "execution.precision=auto", "execution.device=cpu")
    execution = prepare(compose_settings(*TINY, *fast))[0].execution
    assert (execution.graph, execution.channels_last) == (False, True)
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()

    prepare(compose_settings(*TINY, *fast, "execution.deterministic=true"))
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()

    for precision in ("tf32", "fp32"):  # both ways
        prepare(compose_settings(*TINY, f"execution.precision={precision}"))
        allowed = {torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32}
        assert allowed == {precision == "tf32"}

    plain = compose_settings("preset=demo").execution
    assert compose_settings("preset=demo", "profile=deterministic").execution == plain
    assert plain == Execution()
    assert compose_settings("preset=demo", "profile=fast").execution.precision == "auto"


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"architecture": "arm64", "bf16": True}, "fp32"),
    ],
)
def test_auto_precision_is_bf16_on_a_cpu_with_avx512_bf16_or_amx(
    compose_settings: Compose,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, Any],
    precision: str,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    options = ("execution.device=cpu", "execution.precision=auto")
    assert prepare(compose_settings(*TINY, *options))[0].execution.precision == precision


def test_a_bf16_run_on_a_cpu_trains_float32_weights(compose_settings: Compose) -> None:
    bf16 = ("execution.device=cpu", "execution.precision=bf16", "schedule.epochs=[1,1,1]")
    settings, device = prepare(compose_settings(*TINY, *bf16))
    data, _, state = assemble(settings, device)
    first = [parameter.detach().clone() for parameter in state.model.parameters()]
    step = new_step(state, data, settings)
    outputs = []
    state.model.register_forward_hook(lambda *call: outputs.append(call[-1].dtype))
    for drawn in step.draws(0, 4):
        step(*drawn)
    assert set(outputs) == {torch.bfloat16}
    assert state.losses[:4].isfinite().all()
    for parameter, start in zip(state.model.parameters(), first, strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert not torch.equal(parameter, start)


def test_a_step_compiles_the_network_on_request(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.setattr(torch, "compile", lambda model, mode, **_: modes.append(mode) or model)
    for value in ("false", "true", "max-autotune"):
        settings, device = prepare(compose_settings(*TINY, f"execution.compile={value}"))
        data, _, state = assemble(settings, device)
        new_step(state, data, settings)
    assert modes == ["default", "max-autotune-no-cudagraphs"]


def test_channels_last_rejects_narrow_batchnorm_layers() -> None:
    execution, cpu = Execution(channels_last=True), torch.device("cpu")
    with pytest.raises(UserError, match=r"channels_last=true: .* need 8 channels .* has 7;"):
        apply_layout(nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)), execution, cpu)
    model = apply_layout(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), execution, cpu)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
