"""Progress of a sweep from the files of its runs, compared with values computed by hand."""

import json
import os
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Compose, Prompt
from made_records import made_result, metrics_line

from phaseavg.runs.folder import RunFolder
from phaseavg.sweep import progress
from phaseavg.sweep.cells import Run
from phaseavg.sweep.order import Job, arrange_jobs, prefix_run
from phaseavg.sweep.outcomes import NewFiles
from phaseavg.sweep.progress import SweepProgress
from phaseavg.training.progress import TrainingProgress


@pytest.fixture
def runs(compose_settings: Compose) -> list[Run]:
    """Return four runs of 2, 2 and 1 epochs: two per seed, which share two epochs."""
    return [
        Run([], compose_settings(*TINY, f"averaging={averaging}", f"seed={seed}"))
        for seed in (0, 1)
        for averaging in ("none", "phasewise")
    ]


def train(run: Run, epochs: int, ended: str | None = None) -> None:
    folder = run.settings.run_folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(metrics_line(n)) + "\n" for n in range(1, epochs + 1))
    write(folder / "metrics.jsonl", lines + '{"st')  # a line that is being written
    if ended:
        write(folder / ended, json.dumps(made_result(folder.name, 5.0)))


TIMES = count()


def write(path: Path, text: str) -> None:
    """Write a file with a unique modification time."""
    path.write_text(text)
    os.utime(path, ns=(0, next(TIMES)))


def make_progress(runs: list[Run]) -> SweepProgress:
    jobs = arrange_jobs(runs)
    return SweepProgress(jobs, NewFiles(job.run for job in jobs))


def store(job: Job) -> None:
    """Save an empty prefix."""
    key = job.run.prefixes.key(job.run.epochs)
    averages = {name: [] for name in job.run.settings.share.guests}
    with RunFolder(job.run.settings.run_folder) as folder:
        folder.save_checkpoint(1, {"prefix": {"key": key, "averages": averages, "execution": {}}})


def test_epochs_left_and_the_time_for_them(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed has 5 + 5 epochs and shares 2; after 100 s, 4 of 16 epochs are trained."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    train(runs[0], 0, "failure.json")  # of the last attempt
    with make_progress(runs) as shown:
        before = torch.get_rng_state()
        assert shown.describe() is None  # nothing trained yet
        store(arrange_jobs(runs)[0])
        train(runs[0], 4)
        clock[0] = 100.0
        # Seed 0 has one epoch of SGD left, and three of the other run.
        assert shown.describe() == "sweep: 0 of 4 runs have ended; 12 epochs left, about 5 min"
        train(runs[0], 5, "result.json")
        train(runs[1], 2, "failure.json")
        clock[0] = 200.0
        # Runs that did not fail have trained 5 epochs in 200 s, so 8 epochs take 320 s.
        assert shown.describe() == (
            "sweep: 1 of 4 runs have ended, 1 failed; 8 epochs left, about 5 min"
        )
        # A run in the same process may draw random numbers at the same time.
        assert torch.equal(torch.get_rng_state(), before)


def test_a_single_run_starts_from_a_saved_prefix_with_its_averages(runs: list[Run]) -> None:
    prefix, *_ = arrange_jobs(runs[:2])
    (job,) = arrange_jobs([runs[1]])
    without = prefix_run(runs[0], 2, [runs[0]])
    assert without is not None
    store(Job(without))
    assert progress.epochs_done(job) == 0
    store(prefix)
    assert progress.epochs_done(job) == 2


def test_epochs_of_earlier_attempts_are_not_counted(compose_settings: Compose) -> None:
    """With rerun=true a finished run has metrics of all epochs, but no checkpoint."""
    runs = [Run([], compose_settings(*TINY, "rerun=true"))]
    train(runs[0], 5, "result.json")
    with make_progress(runs) as shown:
        assert shown.describe() is None


@pytest.mark.slow
def test_progress_is_printed_while_the_launcher_runs(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.02)
    describe, epoch, said = SweepProgress.describe, TrainingProgress.epoch, threading.Event()

    def describing(self: SweepProgress) -> str | None:
        text = describe(self)
        if text:
            said.set()
        return text

    def waiting(self: TrainingProgress, line: Any) -> None:
        epoch(self, line)
        said.wait()

    monkeypatch.setattr(SweepProgress, "describe", describing)
    monkeypatch.setattr(TrainingProgress, "epoch", waiting)
    status, out, _ = prompt("-m", *TINY, "seed=0,1")
    assert status == 0
    assert "sweep: 0 of 2 runs have ended; " in out
