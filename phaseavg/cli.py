"""Command lines: a mistake takes one line and exit status 2, without a traceback."""

import functools
import inspect
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

CONFIG_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
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
    return explained(error.__cause__) if error.__cause__ else " ".join(str(error).split())


def say(message: str, program: str = "train.py") -> None:
    """Print one line for the user on standard error."""
    print(f"{program}: {message}", file=sys.stderr, flush=True)


def script(main: Callable[[], int]) -> Callable[[], int]:
    """Wrap a script's entry point: a mistake takes one line and status 2.

    A mistake is a `UserError`, or a file or folder that cannot be read or written. A user's own
    part that fails has its traceback shown after the line, and status 1.
    """
    program = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    def entry() -> int:
        try:
            return main()
        except KeyboardInterrupt:
            say("interrupted; rerun the same command to resume", program)
            return INTERRUPTED
        except (UserError, OSError) as error:
            say(_reason(error), program)
            return USER_ERROR
        except PartFailed as error:
            say(str(error), program)
            traceback.print_exception(error.__cause__)
            return FAILED

    return entry


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


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
        hydra = HydraConfig.get()
        if hydra.mode is RunMode.MULTIRUN:
            return _job_of_a_sweep(job, config, hydra)
        try:
            return job(config)
        except Exception as error:
            if _failures is None:
                raise
            _failures.append(error)
            return None

    return reported


def _job_of_a_sweep(job: Callable[[DictConfig], Any], config: DictConfig, hydra: Any) -> Any:
    shown = " ".join(o for o in hydra.overrides.task if not o.lstrip("+").startswith(HIDDEN))
    print(f"{hydra.job.name}: {shown}", flush=True)
    try:
        if (deadline := config.get("deadline")) is not None and time.time() >= deadline:
            raise NotStarted("not started, for lack of time; rerun the same command to resume")
        return job(config)
    except Exception as error:
        _tell(error, f"[{shown}] ")
        if isinstance(error, UserError | Diverged | OutOfTime):
            raise
        raise JobFailed(repr(error)) from None


def _tell(error: Exception, where: str = "") -> int:
    """Print an error, in one line if it is an expected one; return the exit status."""
    if isinstance(error, CONFIG_ERRORS):
        say(where + explained(error))
        return USER_ERROR
    if isinstance(error, UserError | Diverged | SweepFailed | OutOfTime):
        say(where + str(error))
        statuses = {UserError: USER_ERROR, OutOfTime: INTERRUPTED}
        return next((s for kind, s in statuses.items() if isinstance(error, kind)), FAILED)
    if isinstance(error, OSError) and error.filename:
        say(f"{where}{_reason(error)}; fix this and rerun the same command to resume")
    elif isinstance(error, PartFailed):
        say(f"{where}{error}")
        traceback.print_exception(error.__cause__)
    else:
        traceback.print_exception(error)
        say(f"{where}failed: {error!r}")
    return FAILED


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
        return _tell(_failures[0]) if _failures else 0
    except Interrupted as error:
        say(str(error))
        return 128 + error.number
    except KeyboardInterrupt:
        say("interrupted; rerun the same command to resume")
        return INTERRUPTED
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        ours = raised_in.is_relative_to(Path(__file__).parent)
        explained_below = isinstance(error, (UserError, *CONFIG_ERRORS))
        if isinstance(error, ValueError | TypeError) and not (ours or explained_below):
            # Hydra reads the command line.
            arguments = " ".join(sys.argv[1:])
            error = UserError(f"{error}: check {arguments}; --help lists the options")
        return _tell(error)
    finally:
        _failures = None
