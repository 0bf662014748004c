"""Functions for child processes that are interrupted, fail or are killed during training."""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra

import phaseavg.runs.files
import phaseavg.tracking
import phaseavg.training.loop
import phaseavg.training.step
import train
from phaseavg.cli import command_line
from phaseavg.config import Settings
from phaseavg.errors import Interrupted
from phaseavg.runs.folder import RunFolder


def and_at(
    count: int,
    function: Callable[..., Any],
    act: Callable[[], Any],
    due: Callable[..., bool] = lambda *_: True,
) -> Callable[..., Any]:
    """Return `function`, which does more after its `count`-th call, from 1, that is due."""
    calls = itertools.count(1)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if due(*arguments) and next(calls) == count:
            act()
        return result

    return wrapped


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def train_quietly(settings: Settings) -> None:
    """Train a run to its end; append its output to a file next to the runs."""
    torch.set_num_threads(1)  # of a forked process: the parent's threads are not there
    phaseavg.tracking.INIT_SECONDS = 1000.0  # however slow the machine
    os.environ.pop("WANDB_SERVICE", None)  # nor is its W&B
    settings.runs_dir.mkdir(parents=True, exist_ok=True)
    with (settings.runs_dir / "said").open("a") as said:
        sys.stdout = said
        train.run(settings)


def train_and_be_signalled(
    settings: Settings,
    exit_file: Path,
    count: int,
    kill: Callable[[int, int], None] = os.kill,
    number: int = signal.SIGINT,
) -> None:
    """Train a run that receives a signal in step `count`; write its message to a file."""
    step = phaseavg.training.step
    step.count_wrong = and_at(count, step.count_wrong, lambda: kill(os.getpid(), number))
    try:
        train_quietly(settings)
    except Interrupted as error:
        exit_file.write_text(f"{128 + error.number} {error}")


def break_the_service(runs: list[Settings], said: Path) -> None:
    """Train runs; kill W&B's service in the second epoch of the first run.

    Args:
        runs: runs with tracking.
        said: the file for standard error.
    """

    def kill_the_service() -> None:
        (service,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(service), signal.SIGKILL)

    loop = phaseavg.training.loop
    loop.end_epoch = and_at(2, loop.end_epoch, kill_the_service)
    sys.stderr = said.open("w", buffering=1)
    for settings in runs:
        train_quietly(settings)


def train_in_a_group(settings: Settings, exit_file: Path, count: int) -> None:
    """Train like `train_and_be_signalled`, but in a new process group that gets the signal."""
    os.setpgrp()
    train_and_be_signalled(settings, exit_file, count, os.killpg)


def train_and_die_at(settings: Settings, event: str, count: int) -> None:
    """Train a run and kill this process at the `count`-th `event`.

    Args:
        settings: the settings of the run.
        event: `half-written checkpoint`, with half of a checkpoint on disk; `replacing` and the
            beginning of a file's name, with the complete temporary file next to the old one;
            `replaced`, right after the average replaced the weights; `stepped`, right after an
            optimizer step.
        count: counted from 1.
    """
    what, _, name = event.partition(" ")
    if what == "half-written":
        write, calls = phaseavg.runs.folder.write_atomically, itertools.count(1)

        def half(path: Path, content: bytes) -> None:
            if path.name.startswith(name) and next(calls) == count:
                temporary = path.with_name(f".{path.name}.{os.getpid()}.1.part")
                temporary.write_bytes(content[: len(content) // 2])
                die()
            write(path, content)

        phaseavg.runs.folder.write_atomically = half
    elif what == "replacing":

        def is_due(number: int) -> bool:
            return Path(f"/proc/self/fd/{number}").resolve().name.startswith(f".{name}")

        os.fsync = and_at(count, os.fsync, die, due=is_due)
    elif what == "replaced":
        loop = phaseavg.training.loop
        loop.recompute_batchnorm = and_at(count, loop.recompute_batchnorm, die)
    elif what == "stepped":
        step = phaseavg.training.step
        step.count_wrong = and_at(count, step.count_wrong, die)
    train_quietly(settings)


def count_steps(file: Path) -> None:
    """Append a byte to a file for every training step of this process."""
    step = phaseavg.training.step.Step
    taken = step.__call__

    def counted(*arguments: Any) -> None:
        taken(*arguments)
        with file.open("ab") as counter:
            counter.write(b".")

    step.__call__ = counted


def sweep_and_die(
    folder: Path,
    arguments: tuple[str, ...],
    event: str,
    count: int,
    number: int = signal.SIGKILL,
) -> None:
    """Run `train.py …` like `sweep_in_a_group`; kill its process group at the `count`-th event.

    Args:
        folder: the working folder.
        arguments: the command-line arguments.
        event: `stepped`, after an optimizer step; `saved`, after saving a prefix; `never`.
        count: counted from 1.
        number: the signal number for the process group.
    """

    def end() -> None:
        os.killpg(os.getpgrp(), number)

    count_steps(folder / "steps")
    if event == "stepped":
        step = phaseavg.training.step.Step
        step.__call__ = and_at(count, step.__call__, end)
    elif event == "saved":
        RunFolder.save_checkpoint = and_at(
            count, RunFolder.save_checkpoint, end, due=lambda _, step, state, *__: "prefix" in state
        )
    sweep_in_a_group(folder, arguments)


def sweep_in_a_group(folder: Path, arguments: tuple[str, ...]) -> None:
    """Run `train.py …` in a folder and a new process group; exit with its status."""
    os.setpgrp()
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    sys.stdout = sys.stderr = Path("said").open("a")  # noqa: SIM115 -- open until the process ends
    sys.argv = ["train.py", *arguments]
    GlobalHydra.instance().clear()
    sys.exit(command_line(train.main))
