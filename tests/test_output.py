"""Output that cannot be written never ends a run."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest
from conftest import TINY
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

import train as train_script
from phaseavg.cli import command_line, reporting, script, unfailing_output


def reader_gone() -> TextIO:
    """Return a stream that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


UNFIT: dict[str, Callable[[], TextIO]] = {
    "reader gone": reader_gone,
    "disk full": partial(Path("/dev/full").open, "w", buffering=1),
    "letters missing": partial(Path("out.txt").open, "w", buffering=1, encoding="ascii"),
}


@contextmanager
def unfit_output(kind: str) -> Iterator[None]:
    """Set a standard output and error that do not take what is written."""
    with UNFIT[kind]() as stream, redirect_stdout(stream), redirect_stderr(stream):
        yield
        stream.flush()  # as Python does when it ends: nothing may be left


@pytest.mark.parametrize("kind", UNFIT)
def test_output_that_cannot_be_written_is_dropped_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with unfit_output(kind):
        monkeypatch.setattr(sys, "argv", ["train.py", *TINY, 'runs_dir="läufe"'])
        assert command_line(train_script.main) == 0
        monkeypatch.setattr(sys, "argv", ["train.py", 'seed="ä"'])
        assert command_line(train_script.main) == 2
    assert len([*tmp_path.glob("läufe/*/result.json")]) == 1


@pytest.mark.parametrize("kind", UNFIT)
def test_output_is_dropped_likewise_in_a_launchers_worker_and_in_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    hydra_config = OmegaConf.create(
        {"mode": RunMode.MULTIRUN, "overrides": {"task": ["ä=ö"]}, "job": {"name": "run 1"}}
    )
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", lambda: hydra_config)

    def loud(_: Any = None) -> int:
        print("ü", flush=True)
        print("ü", file=sys.stderr, flush=True)
        return 3

    job = reporting(loud)
    with unfit_output(kind):
        assert job(OmegaConf.create()) == 3
        assert script(loud)() == 3


def test_what_an_output_takes_it_gets_with_other_letters_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.txt"
    with path.open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print("first")
        with unfailing_output(), unfailing_output():
            print("läufe")
        print("last")
    assert path.read_text() == "first\nl\\xe4ufe\nlast\n"
