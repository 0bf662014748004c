"""Which software and hardware a record comes from."""

import hashlib
import platform
import re
import resource
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import phaseavg

REPOSITORY = Path(__file__).parents[2]
CODE = ("phaseavg", "conf", "train.py", "hydra_plugins")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 -- the arguments are this module's own
            ["git", "-C", str(REPOSITORY), *arguments],  # noqa: S607 -- the user's own git
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@cache
def source_digest() -> str:
    """Return a hash of the code's files: it says what ran also where a copy has no git."""
    paths = [p for name in CODE for p in (REPOSITORY / name, *(REPOSITORY / name).rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(p for p in paths if p.suffix in (".py", ".yaml") and p.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(REPOSITORY).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@cache
def git_state() -> dict[str, str | bool | None]:
    """Return the commit of the code and whether the code differs from it; None where unknown."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *CODE) if commit else None
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


@cache
def versions() -> dict[str, str | None]:
    """Return the versions of what the numbers depend on."""
    packages = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")
    return {
        "python": platform.python_version(),
        "phaseavg": phaseavg.__version__,  # also where it runs from a copy and is not installed
        **{package: version(package) for package in packages},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def device_name(device: torch.device) -> str:
    """Return what the device is sold as, as far as the system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if device.type == "cpu" and cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.machine()


HOW = {"compile": "compiled", "graph": "CUDA graph", "channels_last": "channels last"}


def how(execution: Mapping[str, Any]) -> list[str]:
    """Return in words how a run is computed, from its execution with nothing left open."""
    words = [word for option, word in HOW.items() if execution.get(option)]
    free = ["not deterministic"] * (execution.get("deterministic") is False)
    return [execution["precision"], *words, *free]


def reset_peak_memory(device: torch.device) -> None:
    """Count a GPU's peak memory from here on."""
    if device.type == "cuda":
        torch.cuda.init()  # which the next lines, unlike others, do not do by themselves
        torch.cuda.empty_cache()  # of runs before this one in the process
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that was held: by a GPU's allocator since the last reset.

    That is what the run needs there, the memory of a CUDA graph between its replays included.
    Elsewhere it is the process's, which has one peak for all the runs that it trains.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def provenance(device: torch.device, execution: Mapping[str, Any]) -> dict[str, Any]:
    """Return with what numbers are made: execution, versions, git commit, hash of the source."""
    return {
        "execution": {
            **execution,
            "device": str(device),
            "device_name": device_name(device),
            # Two CPUs of one name may differ in it, and with it in every rounding.
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "versions": versions(),
        "git": git_state(),
        "source": source_digest(),
    }
