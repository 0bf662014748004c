"""Compare the output of a dry run with the run."""

import re
from pathlib import Path

import pytest
from conftest import TINY, Prompt


def lines_of(out: str) -> dict[str, str]:
    """Return the lines of a dry run by their labels."""
    return dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines()[1:])


def test_a_dry_run_describes_the_run_and_writes_nothing(prompt: Prompt, tmp_path: Path) -> None:
    status, out, err = prompt(
        *TINY,
        "dry_run=true",
        "optimizer=lookahead",
        "schedule=decayed",
        "schedule.epochs=[2,2,1]",
        "averaging=rna",
        "+averaging@observers.swa=uniform",
    )
    assert (status, err) == (0, "")
    assert not list(tmp_path.iterdir())
    assert out.startswith("5 epochs of 8 steps in 3 phases, from step 0; 4,388 parameters; Lookahe")
    lines = lines_of(out)
    assert lines["run"].endswith("(not started)")
    assert "1,000 training and 797 test images, 1×8×8, 10 classes" in lines["data"]
    assert lines["averaging"] == "Phasewise(weights=RNA(rho=1e-05))"
    assert lines["observers.swa"] == "Phasewise(weights=Uniform())"
    # γ = γ0^(80/2): the second of two epochs at (1 − γ) / (1 − γ²) = 1 / (1 + γ) of the rate.
    second = f"{0.1 / (1 + 0.9**40):.3g}"
    assert lines["phase 1"] == f"2 epochs, 16 steps at learning rate 0.1 to {second}"
    assert lines["phase 3"] == "1 epochs, 8 steps at learning rate 0.001"
    assert re.match(r"about \d+:\d\d:\d\d of training, at \S+ ms a step on ", lines["time"])


def test_a_dry_run_reports_a_resumable_or_finished_run(
    prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("phaseavg.training.loop.learning_rates", lambda *_: 1 / 0)
        prompt(*TINY)
    _, out, _ = prompt(*TINY, "dry_run=true")
    assert lines_of(out)["run"].endswith("(started; would resume)")
    prompt(*TINY)
    status, out, _ = prompt(*TINY, "dry_run=true")
    assert status == 0
    assert "finished before" in out
