"""Where a sweep is: by hand, from what runs leave."""

import json
import os
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Prompt
from made_records import line, made_result

from phaseavg.sweep import progress
from phaseavg.sweep.cells import Run
from phaseavg.sweep.order import arranged
from phaseavg.sweep.outcomes import NewFiles
from phaseavg.sweep.progress import SweepProgress
from phaseavg.training.progress import TrainingProgress


@pytest.fixture
def runs(compose_settings: Callable[..., Any]) -> list[Run]:
    """Return four runs of 2, 2 and 1 epochs; of two seeds each, that have two in common."""
    return [
        Run([], compose_settings(*TINY, f"averaging={averaging}", f"seed={seed}"))
        for seed in (0, 1)
        for averaging in ("none", "phasewise")
    ]


def train(run: Run, epochs: int, ended: str | None = None) -> None:
    folder = run.settings.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(line(n)) + "\n" for n in range(1, epochs + 1))
    write(folder / "metrics.jsonl", lines + '{"st')  # a line that is being written
    if ended:
        write(folder / ended, json.dumps(made_result(folder.name, 5.0)))


TIMES = count()


def write(path: Path, text: str) -> None:
    """Write a file at a time of its own, however fast the machine."""
    path.write_text(text)
    os.utime(path, ns=(0, next(TIMES)))


def progress_of(runs: list[Run]) -> SweepProgress:
    return SweepProgress(arranged(runs), NewFiles(runs))


def test_epochs_left_and_the_time_for_them(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 epochs a seed of 5 and 5 that have 2 in common; after 100 s 4 of the 16 are trained."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    train(runs[0], 0, "failure.json")  # of the last attempt
    with progress_of(runs) as shown:
        before = torch.get_rng_state()
        assert shown.described() is None  # nothing trained yet
        train(runs[0], 4)
        clock[0] = 100.0
        # Of seed 0 one epoch of SGD is left, and three of the run that starts from it.
        assert shown.described() == "sweep: 0 of 4 runs have ended; 12 epochs left, about 5 min"
        train(runs[0], 5, "result.json")
        train(runs[1], 2, "failure.json")
        clock[0] = 200.0
        # 5 epochs of runs that did not fail are trained, in 200 s: 8 more take 320.
        assert shown.described() == (
            "sweep: 1 of 4 runs have ended, 1 failed; 8 epochs left, about 5 min"
        )
        # A run in the same process may draw its own random numbers meanwhile.
        assert torch.equal(torch.get_rng_state(), before)


def test_what_an_earlier_attempt_left_is_not_trained_now(runs: list[Run]) -> None:
    """A finished run that is repeated has all its metrics, and no epoch that it goes on from."""
    train(runs[0], 5, "result.json")
    with progress_of(runs[:1]) as shown:
        assert shown.described() is None


@pytest.mark.slow
def test_it_is_said_while_the_launcher_works(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.02)
    described, epoch, said = SweepProgress.described, TrainingProgress.epoch, threading.Event()

    def describing(self: SweepProgress) -> str | None:
        text = described(self)
        if text:
            said.set()
        return text

    def waiting(self: TrainingProgress, line: Any) -> None:
        epoch(self, line)
        said.wait()

    monkeypatch.setattr(SweepProgress, "described", describing)
    monkeypatch.setattr(TrainingProgress, "epoch", waiting)
    status, out, _ = prompt("-m", *TINY, "seed=0,1")
    assert status == 0
    assert "sweep: 0 of 2 runs have ended; " in out
