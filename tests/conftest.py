"""Shared by several tests: composed configs, runs of a second, and processes to kill."""

import importlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

import train as train_script
from phaseavg.cli import command_line
from phaseavg.config import Settings, check

REPOSITORY = Path(__file__).parents[1]

TINY = (  # 8 steps an epoch of a network of 4,000 parameters: under a second for 5 epochs
    "preset=demo",
    "profile=deterministic",
    "model.width=0.03",
    "schedule.epochs=[2,2,1]",
    "evaluation.average_every=0",
    "checkpoint_seconds=0",
    "tracking=none",
)

TIMES = ("seconds", "images_per_second")


def untimed(value: Any, names: Sequence[str] = TIMES) -> Any:
    """Return metrics without times and speeds, or without other `names`."""
    if isinstance(value, dict):
        return {k: untimed(v, names) for k, v in value.items() if k not in names}
    return [untimed(item, names) for item in value] if isinstance(value, list) else value


def also_slow(*parameters: Any) -> list[Any]:
    """Mark parameters of a test as slow."""
    return [
        pytest.param(*(p if isinstance(p, tuple) else (p,)), marks=pytest.mark.slow)
        for p in parameters
    ]


def needs_gpu(test: Any) -> Any:
    """Mark a test as `gpu`, and skip it where there is none."""
    skipped = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
    return pytest.mark.gpu(skipped(test))


@cache
def composed(*overrides: str) -> DictConfig:
    """Compose the config of overrides, cached per process; copy it before changing it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


Compose = Callable[..., Settings]


@pytest.fixture
def compose_settings(tmp_path: Path) -> Compose:
    """Return a function from overrides to the checked settings of a run below `tmp_path`."""

    def settings_of(*overrides: str) -> Settings:
        config = composed(*overrides).copy()
        names = {override.partition("=")[0] for override in overrides}
        for name in {"runs", "records"}:
            if f"{name}_dir" not in names:
                config[f"{name}_dir"] = str(tmp_path / name)
        return check(config)

    return settings_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Compose:
    """Return a function that trains a tiny run, once per module, and returns its settings."""
    settings_of: dict[tuple[str, ...], Settings] = {}

    def run(*overrides: str) -> Settings:
        if overrides not in settings_of:
            folder = tmp_path_factory.mktemp("runs")
            where = (f"runs_dir={folder}", f"records_dir={folder}", "save_weights=true")
            settings_of[overrides] = check(composed(*TINY, *where, *overrides).copy())
            train_script.run(settings_of[overrides])
        return settings_of[overrides]

    return run


def history_of(settings: Settings) -> list[dict[str, Any]]:
    """Return the metrics of a run."""
    lines = (settings.run_folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def result_of(settings: Settings) -> dict[str, Any]:
    """Return the result of a run."""
    return json.loads((settings.run_folder / "result.json").read_text())


def weights_of(settings: Settings) -> dict[str, torch.Tensor]:
    """Return the saved weights of a run."""
    return safetensors.torch.load_file(settings.run_folder / "weights.safetensors")


def assert_same_weights(
    actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]
) -> None:
    """Compare the tensors of two state dicts bit by bit."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Seed torch before each test."""
    torch.manual_seed(0)


Prompt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prompt(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Prompt:
    """Return a function that runs `train.py …` and returns status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        status = command_line(train_script.main)
        output = capfd.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Prompt:
    """Return a function that runs `scripts/<name>.py …`; it returns status, stdout and stderr."""

    def run(name: str, *arguments: str | Path) -> tuple[int, str, str]:
        main = importlib.import_module(f"scripts.{name}").main
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        return main(), *capfd.readouterr()

    return run


def assert_one_line(output: tuple[int, str, str], message: str, name: str = "train.py") -> None:
    """Check that a command reported a mistake in one line."""
    status, _, err = output
    assert status == 2
    assert err.startswith(f"{name}: ")
    assert message in err
    assert err.count("\n") == 1, err


torch.set_num_threads(1)  # more threads do not speed up tiny networks


INDIRECT_IMPORTS = (
    "torch.fx.experimental.symbolic_shapes",  # imported by torch with the first meta tensor
    "hydra._internal.core_plugins.basic_sweeper",
    "phaseavg.models",
    "phaseavg.sweep.launch",
    "phaseavg.sweep.sweeper",
)


@pytest.fixture(scope="session")
def victims() -> Any:
    """Return a multiprocessing context whose forked processes have slow modules preloaded.

    Importing these modules would take each process more than a second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "wandb", "train", *INDIRECT_IMPORTS])
    return context


def in_a_victim(victims: Any, target: Callable[..., None], *arguments: Any) -> int:
    """Run a function of `victims.py` in a process of its own; return its exit code."""
    process = victims.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode
