"""Offline W&B runs, sent once, by `wandb sync`."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phaseavg.tracking import in_training, local_files, run_id_of

SYNC = (sys.executable, "-m", "wandb", "sync", "--include-synced")
"""Sends what it is given: which of them have been sent already is decided here."""

SIGNS = r"^(wandb: ?)?\s*(ERROR|WARNING|Error:)?|\x1b\[[0-9;]*m"
"""What lines begin with, and colours."""

OF_NO_RUN = ("detailed error logs", "Syncing", "Loaded credentials", ".wandb", "more (pass")
"""What is in lines that `wandb sync` prints whatever happens, such as the files it is given."""


@dataclass
class Uploaded:
    """What has become of offline runs.

    Attributes:
        now: run ids of those that were sent.
        before: of those that had been.
        going: of those that are in training, and are left for later.
        failed: reasons by run id.
    """

    now: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    going: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = {
            "uploaded": len(self.now),
            "already uploaded": len(self.before),
            "in training and left for later": len(self.going),
            "failed": len(self.failed),
        }
        if not any(counts.values()):
            return "there is no offline run"
        always = ("uploaded", "already uploaded", "failed")
        said = ", ".join(f"{n} {what}" for what, n in counts.items() if n or what in always)
        reasons = list(dict.fromkeys(self.failed.values()))
        if len(reasons) == 1:
            return f"{said}: {reasons[0]}"
        return "\n".join([said, *(f"{run}: {reason}" for run, reason in self.failed.items())])


def sent(file: Path) -> bool:
    """Return whether W&B has marked a file as sent, and nothing was added to it since."""
    mark = file.with_name(f"{file.name}.synced")
    return mark.exists() and mark.stat().st_mtime_ns >= file.stat().st_mtime_ns


def upload(folder: Path, patience: float) -> Uploaded:
    """Send the offline runs in a folder and below it that have not been sent.

    Args:
        folder: of runs, or of W&B's.
        patience: seconds without any of them having been sent, after which it gives up: without a
            server `wandb sync` would try for ever.

    Raises:
        UserError: if there is no such folder.
    """
    found = Uploaded()
    todo = []
    for file in local_files(folder):
        if not file.parent.name.startswith("offline-"):
            continue
        if in_training(file):
            found.going.append(run_id_of(file))
        elif sent(file):
            found.before.append(run_id_of(file))
        else:
            todo.append(file)
    if todo:
        said, in_time = _run([*SYNC, *map(str, todo)], lambda: sum(map(sent, todo)), patience)
        for file in todo:
            if sent(file):
                found.now.append(run_id_of(file))
            elif in_time:
                found.failed[run_id_of(file)] = reason_for(file, said, todo)
            else:
                found.failed[run_id_of(file)] = f"no answer in {patience:g} s"
    return found


def reason_for(file: Path, said: str, files: Collection[Path]) -> str:
    """Return why a file was not sent: the last line that names its run, or else the last of all.

    Args:
        file: of the run.
        said: by `wandb sync`.
        files: all that it was given.
    """
    plain = (re.sub(SIGNS, "", line).strip() for line in said.splitlines())
    lines = [line for line in plain if line and not any(words in line for words in OF_NO_RUN)]
    others = [run_id_of(other) for other in files if other != file]
    about = [line for line in lines if not any(run_id in line for run_id in others)]
    own = [line for line in about if run_id_of(file) in line]
    return (own or about or ["wandb sync has said nothing"])[-1]


def _run(command: Sequence[str], progress: Callable[[], int], patience: float) -> tuple[str, bool]:
    """Run a command; return what it has printed, and whether it ended by itself.

    Args:
        command: with its arguments.
        progress: how far it is.
        patience: seconds without progress after which it is stopped, with all that it has started.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(  # noqa: S603 -- W&B's own
            command,
            stdin=subprocess.DEVNULL,  # it asks nothing
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        done, since = progress(), time.monotonic()
        try:
            while process.poll() is None and time.monotonic() - since < patience:
                time.sleep(0.1)
                if (now := progress()) != done:
                    done, since = now, time.monotonic()
        finally:
            in_time = process.poll() is not None
            if not in_time:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return output.read(), in_time
