"""A run has the threads that it asks for, whatever runs before it in the process had."""

import json
from pathlib import Path

from conftest import TINY, Prompt


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
    assert err == "train.py: execution.threads=0: input should be greater than 0\n"
