"""Command lines: a mistake takes one line and exit status 2, without a traceback."""

import functools
import inspect
import io
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phaseavg.errors import (
    Diverged,
    Interrupted,
    JobFailed,
    NotStarted,
    OutOfTime,
    PartFailed,
    SweepFailed,
    UserError,
)
from phaseavg.targets import unknown

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130

HIDDEN = ("tracking.cells", "share.keep", "share.guests", "deadline")
"""Overrides that a sweep adds to those that were typed."""

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, RecursionError, yaml.YAMLError)
"""What composing a config raises if an override or a file of options is wrong."""


NOT_SEARCHING = ("phaseavg", "basic")
"""Sweepers that keep nothing in their folder."""


def _sweep_folder(now: str, *, _root_: DictConfig) -> str:
    """Return where Hydra writes about a sweep; what a sweeper has found stays with the runs."""
    sweeper = _root_.hydra.runtime.choices["hydra/sweeper"]
    if sweeper in NOT_SEARCHING:
        return str(Path(tempfile.gettempdir(), f"phaseavg-{os.getuid()}"))
    return str(Path(_root_.runs_dir, f".{sweeper}", now))


OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, replace=True)


def explained(error: BaseException) -> str:
    """Return in one line why a config cannot be composed.

    Args:
        error: one of `CONFIG_ERRORS`.
    """
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return unknown(f"{group}={choice}", error.options, "option")
    if isinstance(error, OmegaConfBaseException) and "not in struct" in str(error):
        siblings = map(str, error.parent_node or ())
        names = [name for name in siblings if name not in ("hydra", "_target_")]
        return unknown(error.full_key or "", names)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    if isinstance(error, RecursionError):
        return "defaults: files of options include each other, or are nested too deeply"
    return explained(error.__cause__) if error.__cause__ else " ".join(str(error).split())


class _Dropping(io.FileIO):
    """An open file that drops what it cannot write instead of raising."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Return the number of bytes that were written or dropped."""
        written = None
        with suppress(OSError):
            written = super().write(data)
        return memoryview(data).nbytes if written is None else written


def _unfailing(stream: TextIO) -> TextIO:
    """Return a stream to the same file whose `write` and `flush` never raise."""
    try:
        raw = _Dropping(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):  # closed, or in memory
        return stream
    with suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
    )


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Drop what standard output and error cannot write, so that neither ends a run.

    A pipe may be closed, a disk full, or a letter missing from the encoding.
    """
    with ExitStack() as stack:
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            safe = _unfailing(stream)
            stack.enter_context(redirect(safe))
            if safe is not stream:
                stack.callback(safe.flush)
        yield


def say(message: str, program: str = "train.py") -> None:
    """Print one line for the user on standard error."""
    print(f"{program}: {message}", file=sys.stderr, flush=True)


def script(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a script's entry point: a mistake takes one line and status 2, and output never fails.

    A mistake is a `UserError`, or a file or folder that cannot be read or written. A user's own
    part that fails has its traceback shown after the line, and status 1.
    """
    program = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    def entry() -> int:
        with unfailing_output():
            try:
                return main()
            except KeyboardInterrupt:
                say("interrupted; rerun the same command to resume", program)
                return INTERRUPTED
            except UserError as error:
                reason = str(error)
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            except PartFailed as error:
                say(str(error), program)
                traceback.print_exception(error.__cause__)
                return FAILED
            say(reason, program)
            return USER_ERROR

    return entry


typed: list[str] = []
"""The command line as it was typed."""

_failures: list[Exception] | None = None
"""Errors of this process's single run; None outside of `command_line`."""


def reporting(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wrap a Hydra job so that a job of a sweep prints its overrides and its error at once.

    A sweep's errors become ones that can be pickled, for launchers with worker processes. A single
    run's error goes to `command_line` directly: Hydra would print its own message about it.
    """

    @functools.wraps(job)
    def reported(config: DictConfig) -> Any:
        with unfailing_output():  # also in a launcher's worker process
            return _reported(job, config)

    return reported


def _reported(job: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return _kept(job, config)
    asked = " ".join(o for o in hydra.overrides.task if not o.lstrip("+").startswith(HIDDEN))
    print(f"{hydra.job.name}: {asked}", flush=True)
    try:
        if (deadline := config.get("deadline")) is not None and time.time() >= deadline:
            raise NotStarted("not started, for lack of time; rerun the same command to resume")
        return job(config)
    except Exception as error:
        _tell(error, f"[{asked}] ")
        if isinstance(error, UserError | Diverged | OutOfTime):
            raise
        raise JobFailed(repr(error)) from None


def _kept(job: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    try:
        return job(config)
    except Exception as error:
        if _failures is None:
            raise
        _failures.append(error)
        return None


def _ours(error: Exception) -> bool:
    """Return whether an error was raised in this project's own code, not in Hydra's."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(__file__).parent)


def _status(error: Exception) -> int:
    if isinstance(error, OutOfTime):
        return INTERRUPTED
    return USER_ERROR if _is_mistake(error) else FAILED


def _tell(error: Exception, where: str = "") -> None:
    if isinstance(error, UserError | Diverged | SweepFailed | OutOfTime):
        say(where + str(error))
    elif _is_mistake(error):
        say(where + explained(error))
    elif isinstance(error, OSError) and error.filename:
        reason = f"{error.filename}: {error.strerror}"
        say(f"{where}{reason}; fix this and rerun the same command to resume")
    elif isinstance(error, PartFailed):
        say(f"{where}{error}")
        traceback.print_exception(error.__cause__)
    else:
        traceback.print_exception(error)
        say(f"{where}failed: {error!r}")


def _is_mistake(error: Exception) -> bool:
    if isinstance(error, RecursionError):  # in Hydra: files of options include each other
        return any("hydra" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return isinstance(error, (UserError, *CONFIG_ERRORS))


@unfailing_output()
def command_line(main: Callable[[], Any]) -> int:
    """Run a Hydra entry point; return 0, or 1 failed, 2 mistake, 130/143 after a signal.

    Args:
        main: decorated by Hydra; reads `sys.argv`.
    """
    global _failures
    typed[:] = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of exiting
    _failures = []
    try:
        main()
        for error in _failures:
            _tell(error)
            return _status(error)
        return 0
    except Interrupted as error:
        say(str(error))
        return 128 + error.number
    except KeyboardInterrupt:
        say("interrupted; rerun the same command to resume")
        return INTERRUPTED
    except Exception as error:  # before any job: while Hydra reads the command line
        if (
            isinstance(error, ValueError | TypeError)
            and not _is_mistake(error)
            and not _ours(error)
        ):
            arguments = " ".join(sys.argv[1:])
            error = UserError(f"{error}: check {arguments}; --help lists the options")
        _tell(error)
        return _status(error)
    finally:
        _failures = None
