"""The prompt: Hydra's and the user's errors in one line, exit status 2, no traceback."""

import functools
import inspect
import io
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import phaseavg.options  # noqa: F401 -- which reads Hydra's files
from phaseavg.errors import (
    Diverged,
    Interrupted,
    JobFailed,
    OutOfTime,
    PartFailed,
    SweepFailed,
    UserError,
    WorkerLost,
)

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130


def _scratch_folder() -> str:
    """Where Hydra puts what it insists on writing for a sweep; all of ours is in the runs."""
    return str(Path(tempfile.gettempdir(), f"phaseavg-{os.getuid()}"))


OmegaConf.register_new_resolver("scratch_folder", _scratch_folder, replace=True)


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def explained(error: Exception) -> str:
    """Return what Hydra or OmegaConf has to say about a command line, in one line."""
    for cause in _chain(error):
        if isinstance(cause, MissingConfigException) and cause.options is not None:
            group, _, choice = (cause.missing_cfg_file or "").rpartition("/")
            return f"{group}={choice}: there is no such option; choices: {', '.join(cause.options)}"
        if isinstance(cause, OmegaConfBaseException) and "not in struct" in str(cause):
            parent, _, key = (cause.full_key or "").rpartition(".")
            siblings = [] if cause.parent_node is None else [str(k) for k in cause.parent_node]
            names = ", ".join(name for name in siblings if name not in ("hydra", "_target_"))
            prefix = f"{parent}." if parent else ""
            return f"{prefix}{key}: there is no such key; choices: {names}"
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            return f"{cause.full_key}: {str(cause).splitlines()[0]}"
        if isinstance(cause, RecursionError):
            return "defaults: files of options include each other"
    return re.sub(r"\s+", " ", str(error)).strip()


class _Dropping(io.FileIO):
    """An open file that takes whatever is written and drops what it cannot store or send."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Return how many bytes are done with."""
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
    """Drop, while entered, what standard output and error cannot take: neither ends a run.

    Their reader may have left, their disk may be full, their encoding may lack a letter.
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
"""The command line as it was typed, before `as_option`."""

_failures: list[Exception] | None = None
"""What the single run of this process has raised; None where no `command_line` waits for it."""


def reporting(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wrap a Hydra job so that in a sweep it says which it is, and why it failed, at once.

    What it raises then can be handed from a launcher's worker process to its parent. What a single
    run raises goes to `command_line` behind Hydra's back, which would have words of its own on it.
    """

    @functools.wraps(job)
    def reported(config: DictConfig) -> Any:
        with unfailing_output():  # in a launcher's worker, too
            return _reported(job, config)

    return reported


def _reported(job: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return _kept(job, config)
    asked = " ".join(o for o in hydra.overrides.task if not o.startswith("cells="))
    print(f"{hydra.job.name}: {asked}", flush=True)
    try:
        if (stop := config.get("stop_at")) is not None and time.time() >= stop:
            raise OutOfTime("out of time, and not begun; the same command goes on")
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
    if isinstance(error, UserError | Diverged | SweepFailed | OutOfTime | WorkerLost):
        say(where + str(error))
    elif _is_mistake(error):
        say(where + explained(error))
    elif isinstance(error, OSError) and error.filename:
        reason = f"{error.filename}: {error.strerror}"
        say(f"{where}{reason}; once that is mended, the same command goes on")
    elif isinstance(error, PartFailed):
        say(f"{where}{error}")
        traceback.print_exception(error.__cause__)
    else:
        traceback.print_exception(error)
        say(f"{where}failed: {error!r}")


def _is_mistake(error: Exception) -> bool:
    if isinstance(error, RecursionError):  # of Hydra, which reads what files of options include
        return any("hydra" in frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return isinstance(error, UserError | HydraException | OmegaConfBaseException)


def of_the_paper(tables: Iterable[str]) -> list[str]:
    """Return those of some tables that the paper has: they alone have numbers."""
    return sorted(name for name in tables if name[0].isdecimal())


def as_option(argument: str, conf: Path) -> str:
    """Return an override with the numbers among a group's options quoted.

    Hydra takes `schedule=80` for a number, and a number for no option. Among tables, `all` becomes
    those of the paper.
    """
    group, equals, options = argument.partition("=")
    if not (group and equals and (conf / group).is_dir()):
        return argument
    names = options.split(",")
    if group == "table" and "all" in names:
        papers = of_the_paper(path.stem for path in (conf / group).glob("*.yaml"))
        names = list(dict.fromkeys([*papers, *(name for name in names if name != "all")]))
    return f"{group}=" + ",".join(f"'{name}'" if name.isdecimal() else name for name in names)


@unfailing_output()
def command_line(main: Callable[[], Any], conf: Path) -> int:
    """Run a Hydra entry point; return 0, or 1 failed, 2 mistake, 130/143 after a signal.

    Args:
        main: decorated by Hydra; reads `sys.argv`.
        conf: the folder of its configs.
    """
    global _failures
    typed[:] = sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on instead of exiting
    sys.argv[1:] = [as_option(argument, conf) for argument in sys.argv[1:]]
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
        say("interrupted; the same command goes on from what is saved")
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
