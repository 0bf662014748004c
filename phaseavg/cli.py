"""Command lines: report a mistake in one line, with exit status 2 and no traceback."""

import functools
import inspect
import io
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
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
    FirstFailed,
    Interrupted,
    JobFailed,
    NotStarted,
    OutOfTime,
    PartFailed,
    ProcessLost,
    SweepFailed,
    UserError,
)
from phaseavg.processes import is_joined, launched
from phaseavg.targets import unknown_message

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130

SWEEP_OVERRIDES = ("tracking.cells", "share.guests", "deadline")
"""Overrides that a sweep adds to the user's, and that say little to them."""

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
"""Errors that composing a config raises if an override or a config file is wrong."""

ERRORS_OF_ALL = (*CONFIG_ERRORS, FirstFailed, Diverged, OutOfTime, SweepFailed)
"""Errors that all processes of a run have in common; only the first prints them."""

PLAIN_SWEEPERS = ("phaseavg", "basic")
"""Sweepers that do not write to their sweep folder."""


def _sweep_folder(now: str, *, _root_: DictConfig) -> str:
    """Return Hydra's sweep folder; the results of a search are saved next to the runs."""
    sweeper = _root_.hydra.runtime.choices["hydra/sweeper"]
    if sweeper in PLAIN_SWEEPERS:
        return str(Path(tempfile.gettempdir(), f"phaseavg-{os.getuid()}"))
    return str(Path(_root_.runs_dir, f".{sweeper}", now))


OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, replace=True)


def explain(error: BaseException) -> str:
    """Return the reason of one of `CONFIG_ERRORS` in one line."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return unknown_message(f"{group}={choice}", error.options, "option")
    if isinstance(error, OmegaConfBaseException) and "not in struct" in str(error):
        siblings = map(str, error.parent_node or ())
        names = [name for name in siblings if name not in ("hydra", "_target_")]
        return unknown_message(error.full_key or "", names)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    return explain(error.__cause__) if error.__cause__ else " ".join(str(error).split())


def say(message: str, program: str = "train.py") -> None:
    """Print one line for the user on standard error; of several processes, name the later ones."""
    if other_process():
        program = f"{program}, process {os.environ['RANK']}"
    print(f"{program}: {message}", file=sys.stderr, flush=True)


def other_process() -> bool:
    """Return whether this is one of several processes, and not the first."""
    return launched() and os.environ["RANK"] != "0"


class LastingOutput:
    """An output stream that goes on if its reader has ended, like a `tee` that Ctrl-C ends, too.

    Characters that its encoding does not have are escaped.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write text."""
        with self._lasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._lasting():
            self._stream.flush()

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            with suppress(OSError):  # both streams may have had this reader
                print("the reader of the output has ended; going on without it", file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """In this context, standard output and standard error are a `LastingOutput`."""
    out, err = (stream and LastingOutput(stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


def one_line_errors(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a script's entry point: a mistake prints one line and returns status 2.

    A mistake is a `UserError`, a wrong override, or a file that cannot be read or written. If a
    user's own part fails, its traceback is printed as well and the status is 1.
    """
    program = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    @lasting_output()
    def entry() -> int:
        try:
            return main()
        except KeyboardInterrupt:
            say("interrupted; rerun the same command to resume", program)
            return INTERRUPTED
        except OSError as error:
            say(_os_reason(error), program)
            return USER_ERROR
        except (*CONFIG_ERRORS, UserError, PartFailed) as error:
            return _print_failure(error, program=program)

    return entry


def _os_reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


argv: list[str] = []
"""A copy of `sys.argv`, made before Hydra changes it."""

_failures: list[Exception] | None = None
"""Errors of this process's single run; None outside `command_line`."""


def report_errors(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wrap a Hydra job: in a sweep, print its overrides, and its error as soon as it fails.

    Errors in a sweep are replaced by picklable errors, for launchers with worker processes. The
    error of a single run bypasses Hydra, which would print its own message.
    """

    @functools.wraps(job)
    def reporting_job(config: DictConfig) -> Any:
        hydra = HydraConfig.get()
        if hydra.mode is RunMode.MULTIRUN:
            return _run_sweep_job(job, config, hydra)
        try:
            return job(config)
        except Exception as error:
            if _failures is None:
                raise
            _failures.append(error)
            return None

    return reporting_job


def _run_sweep_job(job: Callable[[DictConfig], Any], config: DictConfig, hydra: Any) -> Any:
    overrides = " ".join(
        o for o in hydra.overrides.task if not o.lstrip("+").startswith(SWEEP_OVERRIDES)
    )
    print(f"{hydra.job.name}: {overrides}", flush=True)
    try:
        if (deadline := config.get("deadline")) is not None and time.time() >= deadline:
            raise NotStarted("not started: no time left; rerun the same command to resume")
        return job(config)
    except Exception as error:
        _print_failure(error, f"[{overrides}] ")
        expected = isinstance(error, UserError | Diverged | OutOfTime)
        failure = error if expected else JobFailed(repr(error))
    # Hydra keeps the error until the sweep ends; its frames would keep the network and the data.
    failure.__cause__ = failure.__context__ = None
    raise failure.with_traceback(None)


def _print_failure(error: Exception, where: str = "", program: str = "train.py") -> int:
    """Print an error, an expected error in one line, and return the exit status."""
    common = isinstance(error, ERRORS_OF_ALL) or (isinstance(error, UserError) and not is_joined())
    if other_process() and common:
        return 0  # torchrun ends all processes at the first failure: wait for the first's message
    if isinstance(error, CONFIG_ERRORS):
        say(where + explain(error), program)
        return USER_ERROR
    if isinstance(error, UserError | Diverged | SweepFailed | OutOfTime | ProcessLost):
        say(where + str(error), program)
        statuses = {UserError: USER_ERROR, OutOfTime: INTERRUPTED}
        return next((s for kind, s in statuses.items() if isinstance(error, kind)), FAILED)
    if isinstance(error, OSError) and error.filename:
        say(f"{where}{_os_reason(error)}; fix this and rerun the same command to resume", program)
    elif isinstance(error, PartFailed):
        say(f"{where}{error}", program)
        traceback.print_exception(error.__cause__)
    else:
        traceback.print_exception(error)
        say(f"{where}failed: {error!r}", program)
    return FAILED


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


@lasting_output()
def command_line(main: Callable[[], Any]) -> int:
    """Run a Hydra entry point and return its exit status.

    The status is 0 for success, 1 for a failure, 2 for a mistake, 130 or 143 after a signal.

    Args:
        main: the entry point, decorated by Hydra; it reads `sys.argv`.
    """
    global _failures
    argv[:] = sys.argv
    # Hydra does not accept -m and other options between overrides.
    sys.argv[1:] = sorted(argv[1:], key=_is_override)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise instead of exit
    _failures = []
    try:
        main()
        return _print_failure(_failures[0]) if _failures else 0
    except Interrupted as error:
        if other_process():
            return 0
        say(str(error))
        return 128 + error.number
    except KeyboardInterrupt:
        say("interrupted; rerun the same command to resume")
        return INTERRUPTED
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = raised_in.is_relative_to(Path(__file__).parent)
        has_explanation = isinstance(error, (UserError, *CONFIG_ERRORS))
        if isinstance(error, ValueError | TypeError) and not (ours or has_explanation):
            # Hydra raised it while parsing the command line.
            arguments = " ".join(sys.argv[1:])
            error = UserError(f"{error}: check {arguments}; --help lists the options")
        return _print_failure(error)
    finally:
        _failures = None
