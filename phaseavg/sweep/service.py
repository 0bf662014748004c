"""NVIDIA's Multi-Process Service, by which several processes share a GPU at the same time."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phaseavg.errors import UserError

MPS_CONTROL = "nvidia-cuda-mps-control"

PROBE = """\
import json, sys, torch
device = torch.device(sys.argv[1])
torch.zeros(1, device=device)
free, _ = torch.cuda.mem_get_info(device)
print(json.dumps([torch.cuda.get_device_name(device), free]))
"""


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: what it is sold as.
        free: bytes of its memory.
    """

    name: str
    free: int


def card(device: str, environment: Mapping[str, str] | None = None) -> Card:
    """Return what a GPU is, by a process of its own: this one does not open it.

    Args:
        device: as torch calls it.
        environment: variables that are set for it.

    Raises:
        UserError: if it cannot be used.
    """
    done = subprocess.run(  # noqa: S603 -- this interpreter and this module's own lines
        [sys.executable, "-c", PROBE, device],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UserError(f"execution.device={device}: cannot be used: {reason}")
    name, free = json.loads(done.stdout)
    return Card(name, free)


@contextmanager
def multi_process_service(device: str, folder: Path) -> Iterator[bool]:
    """Run NVIDIA's Multi-Process Service while entered, if there is one and none runs yet.

    Processes that are started meanwhile find it by their environment. Yields whether there is one.

    Args:
        device: a GPU, as torch calls it, on which it is tried.
        folder: where it has its pipes and its log.
    """
    control = shutil.which(MPS_CONTROL)
    if control is None:
        print(f"packed: no {MPS_CONTROL} here, so runs take turns on the GPU", flush=True)
        yield False
        return
    if _answers([control], os.environ, "get_server_list\n") is None:
        yield True  # there is one, which this environment names
        return

    own = {"CUDA_MPS_PIPE_DIRECTORY": folder / "pipe", "CUDA_MPS_LOG_DIRECTORY": folder / "log"}
    for path in own.values():
        path.mkdir()
    variables = {name: str(path) for name, path in own.items()}
    before = dict(os.environ)
    try:
        trouble = _answers([control, "-d"], before | variables, answer=False)
        if trouble is None:
            try:
                card(device, variables)  # a daemon may start, and its server not
                os.environ.update(variables)
            except UserError as error:
                trouble = str(error)
        if trouble is not None:
            print(f"packed: no {MPS_CONTROL}, so runs take turns on the GPU: {trouble}", flush=True)
        yield trouble is None
    finally:
        for name in variables:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        _answers([control], before | variables, "quit\n")


def _answers(
    command: list[str], environment: Mapping[str, str], said: str = "", answer: bool = True
) -> str | None:
    """Return what is wrong with a command, in one line; None if nothing is.

    Args:
        command: to run.
        environment: of it.
        said: to it.
        answer: whether to wait for its last word, which never comes of what stays behind.
    """
    to = subprocess.PIPE if answer else subprocess.DEVNULL
    try:
        done = subprocess.run(  # noqa: S603 -- NVIDIA's own program, found on the user's path
            command, env=environment, input=said, stdout=to, stderr=to, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    words = " ".join(f"{done.stdout or ''} {done.stderr or ''}".split())
    return f"exit status {done.returncode}: {words}" if done.returncode else None
