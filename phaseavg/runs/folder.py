"""The run folder `<runs_dir>/<run_id>/`: lock, files and checkpoints.

config.yaml     the resolved config
metrics.jsonl   one line per epoch
result.json     the result of a finished or diverged run
checkpoint-*    the two latest checkpoints of an unfinished run, named by step and checksum; a run
                that trains a prefix keeps the last
snapshots/      weights of single epochs that the checkpoints refer to, one file each
weights.safetensors   the final weights, with save_weights=true
trajectory/     weights during training, with save_trajectory=
failure.json    the error of the last attempt, if the attempt failed
"""

import contextlib
import fcntl
import io
import json
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import yaml

from phaseavg.atomic import checksum
from phaseavg.averaging.snapshots import is_intact
from phaseavg.errors import Diverged, NotStarted, OutOfTime, UserError
from phaseavg.processes import is_lost_contact, on_first, rank
from phaseavg.runs import record
from phaseavg.runs.files import remove_leftovers, set_aside, write_atomically
from phaseavg.signals import StopSignals

TRAJECTORY = "trajectory"

POLL_SECONDS = 0.5
"""Time between attempts to get the lock of a folder."""

MISMATCHES = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)
"""The errors of `load_state_dict` with a state that does not match the code or the data."""

MAX_CHECKPOINTS = 2  # if the latest is damaged, the run resumes from the previous checkpoint


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result in a run folder; None if the folder has no result.

    A result that is damaged or belongs to another run is renamed to `result.json.damaged`.

    Raises:
        UserError: if the file cannot be read.
    """
    path = folder / record.RESULT
    try:
        result = record.read_result(folder)
        if result["run_id"] != folder.name:
            raise ValueError(f"its run_id is {result['run_id']}")
        return result
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except record.READ_ERRORS as error:
        try:
            done = f"renamed to {set_aside(path, 'damaged').name}"
        except UserError as failure:  # others, such as those of a read-only folder, are not stopped
            done = str(failure)
        print(f"{path} is damaged ({error}): {done}", flush=True)
        return None


def in_progress(folder: Path) -> bool:
    """Return whether a process holds the lock of a run folder."""
    try:
        with (folder / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock
        return False
    return False


def read_failure(folder: Path) -> str | None:
    """Return the error of the last attempt at a run; None if the attempt did not fail."""
    try:
        return str(json.loads((folder / "failure.json").read_text())["error"])
    except FileNotFoundError:
        return None
    except record.READ_ERRORS as error:
        return f"failure.json cannot be read ({error})"


def record_failure(folder: Path, reason: str, **details: Any) -> None:
    """Write failure.json into a run folder; create the folder if it is missing."""
    with contextlib.suppress(OSError, UserError):  # if the disk is full, the printed error remains
        folder.mkdir(parents=True, exist_ok=True)
        failure = {"run_id": folder.name, "error": reason, **details}
        write_atomically(folder / "failure.json", _json(failure))


def _json(values: Any) -> bytes:
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace")  # a file name may not be UTF-8


class RunFolder:
    """Create and lock a run folder on entering; only one process holds the lock.

    If several processes train a run, only the first reads and writes the folder.

    Args:
        path: the folder.
        wait: whether to wait for a process that holds the lock.
        deadline: Unix time until which to wait; None waits as long as necessary.

    Raises:
        UserError: on entering, if the folder is not writable or another process holds the lock.
        Interrupted: after a signal while waiting.
        NotStarted: if the deadline passes while waiting.
    """

    def __init__(self, path: Path, wait: bool = False, deadline: float | None = None) -> None:
        self.path = path
        self.wait = wait
        self.deadline = deadline
        self._references: dict[str, list[str]] = {}  # checkpoint → snapshot files

    def __enter__(self) -> Self:
        self._open()
        return self

    @on_first
    def _open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")  # held until the process ends
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); set a writable runs_dir or "
                "share.dir"
            ) from error
        if not self._try_to_lock():
            self._wait_for_lock()
        for folder in (self.path, self.path / TRAJECTORY, self.path / "snapshots"):
            remove_leftovers(folder)

    def _wait_for_lock(self) -> None:
        busy = f"{self.path}: another process is training this run"
        if not self.wait:
            time.sleep(POLL_SECONDS)  # `in_progress` takes the lock for a moment
            if self._try_to_lock():
                return
            self._lock.close()
            raise UserError(busy)
        print(f"{busy}; waiting", flush=True)
        with StopSignals() as signals:
            while not self._try_to_lock():
                where = f"while waiting for {self.path}; rerun the same command to resume"
                if signals.received is not None:
                    self._lock.close()
                    signals.stop(where)
                if self.deadline is not None and time.time() > self.deadline:
                    self._lock.close()
                    raise NotStarted(f"out of time {where}")
                time.sleep(POLL_SECONDS)

    def _try_to_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lock.close()
            raise UserError(
                f"{self.path}: its file system has no locks ({error.strerror}); set a folder on "
                "another one"
            ) from error
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if rank() > 0:
            return
        expected = error is None or is_lost_contact(error) or not isinstance(error, Exception)
        if not expected and not isinstance(error, UserError | Diverged | OutOfTime):
            record_failure(self.path, repr(error), traceback=traceback.format_exception(error))
        fcntl.flock(self._lock, fcntl.LOCK_UN)  # forked workers have copies of the open file
        self._lock.close()

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.path / name, content)

    @on_first
    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config."""
        self._write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False).encode())

    @on_first
    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Rewrite metrics.jsonl atomically, so that a kill leaves no partial line."""
        self._write("metrics.jsonl", b"".join(_json(line) + b"\n" for line in history))

    @on_first
    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result and remove the checkpoints."""
        text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
        self._write("result.json", text.encode())
        self.remove_checkpoints()
        self.remove_failure()

    def remove_failure(self) -> None:
        """Remove the error of an earlier attempt."""
        (self.path / "failure.json").unlink(missing_ok=True)

    @on_first
    def reopen(self) -> None:
        """Rename an existing result and delete the other outputs before retraining."""
        if read_result(self.path) is None:
            return
        self.remove_checkpoints()
        (self.path / "weights.safetensors").unlink(missing_ok=True)
        shutil.rmtree(self.path / TRAJECTORY, ignore_errors=True)
        set_aside(self.path / "result.json", "previous")

    def _checkpoints(self) -> list[Path]:
        """Return the checkpoint files, latest first."""
        return sorted(self.path.glob("checkpoint-*.pt"), reverse=True)

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints and their snapshots."""
        for path in self._checkpoints():
            path.unlink()
        shutil.rmtree(self.path / "snapshots", ignore_errors=True)

    @on_first
    def save_checkpoint(
        self,
        step: int,
        state: Mapping[str, Any],
        files: Sequence[Path] = (),
        keep: int = MAX_CHECKPOINTS,
    ) -> None:
        """Save a checkpoint after `step` updates, then remove the oldest checkpoints.

        Args:
            step: the number of finished updates.
            state: tensors, numbers and names.
            files: snapshots in this folder that the state refers to. They are immutable, and are
                removed once no checkpoint refers to them.
            keep: the number of checkpoints to keep.
        """
        names = [str(path.relative_to(self.path)) for path in files]
        buffer = io.BytesIO()
        torch.save({**state, "run_id": self.path.name, "files": names}, buffer)
        content = buffer.getvalue()
        name = f"checkpoint-{step:09d}-{checksum(content)}.pt"
        self._write(name, content)
        for path in self._checkpoints()[keep:]:
            path.unlink()
        self._references[name] = names
        references = [self._references.get(path.name) for path in self._checkpoints()]
        if None not in references:  # None: saved by an earlier process and not read by this one
            needed = {self.path / name for names in references for name in names}
            for path in set((self.path / "snapshots").glob("*.pt")) - needed:
                path.unlink()

    def restore(self, state: Any) -> None:
        """Load the latest intact checkpoint, if any, into `state`.

        Raises:
            UserError: if the checkpoint does not match the current code or data.
        """
        checkpoint = self.load_checkpoint()
        if checkpoint is None:
            return
        try:
            state.load_state_dict(checkpoint)
        except MISMATCHES as error:
            reason = " ".join(str(error).split()) or repr(error)
            raise UserError(
                f"{self.path}: the checkpoint does not match: {reason}; undo that change, or move "
                "the folder elsewhere to start again"
            ) from error

    @on_first
    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the latest intact checkpoint, on the CPU; None if no checkpoint is intact.

        Damaged checkpoints and checkpoints of other runs are renamed. Loading never executes code.

        Raises:
            UserError: if a checkpoint cannot be read.
        """
        for path in self._checkpoints():
            try:
                return self._read(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
            except ValueError as error:
                aside = set_aside(path, "damaged")
                print(f"{error}: {path.name} renamed to {aside.name}", flush=True)
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        state = read_state(path.read_bytes(), path)
        if state is None:
            raise ValueError(f"{path} is damaged")
        if (owner := state.get("run_id")) != self.path.name:
            raise ValueError(f"{path} belongs to another run ({owner}) or to an older version")
        self._references[path.name] = state.get("files", [])
        for name in self._references[path.name]:
            if not is_intact(self.path / name):
                raise ValueError(f"{self.path / name} is damaged")
        return state


def read_state(content: bytes, path: Path) -> dict[str, Any] | None:
    """Return a state saved by torch, on the CPU; None if the file is damaged.

    Loading never executes code.

    Args:
        content: the content of the file.
        path: the file, whose name ends in the checksum of its content.
    """
    if path.stem.rpartition("-")[2] != checksum(content):
        return None
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a damaged or malicious file can raise any exception
        return None
    return state if isinstance(state, dict) else None
