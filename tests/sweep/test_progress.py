"""Where a sweep is: by hand, from what runs leave."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TINY, Prompt

from phaseavg.sweep import progress
from phaseavg.sweep.cells import Run
from phaseavg.sweep.progress import SweepProgress


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
    lines = "".join(json.dumps({"step": 8 * n}) + "\n" for n in range(1, epochs + 1))
    (folder / "metrics.jsonl").write_text(lines + '{"st')  # a line that is being written
    if ended:
        (folder / ended).write_text("{}")


def test_epochs_left_and_the_time_for_them(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 epochs a seed of 5 and 5 that have 2 in common; after 100 s 4 of the 16 are trained."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    train(runs[0], 0, "failure.json")  # of the last attempt
    with SweepProgress(runs, shared=True) as shown:
        assert shown.left() == (16, 0, 0)
        assert shown.described() is None  # nothing trained yet
        train(runs[0], 4)
        clock[0] = 100.0
        # Of seed 0 one epoch of one run is left, and all of the other, which has them by itself.
        assert shown.left() == (1 + 5 + 8, 0, 0)
        assert shown.described() == ("sweep: 0 of 4 runs have ended; 14 epochs left, about 12 min")
        assert shown.described() is None  # nothing new
        train(runs[0], 5, "result.json")
        train(runs[1], 2, "failure.json")
        clock[0] = 160.0
        assert shown.described() == (
            "sweep: 1 of 4 runs have ended, 1 failed; 8 epochs left, about 3 min"
        )


def test_it_is_said_while_the_launcher_works(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(progress, "MOST_OF_THE_TIME", 1)
    status, out, _ = prompt("-m", *TINY, "seed=0,1")
    assert status == 0
    assert "sweep: 0 of 2 runs have ended; " in out
