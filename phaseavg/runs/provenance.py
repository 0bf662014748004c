"""Record the software and hardware that a run uses."""

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
from phaseavg.atomic import checksum
from phaseavg.processes import count
from phaseavg.targets import own_files

REPOSITORY = Path(__file__).parents[2]
CODE = ("phaseavg", "conf", "train.py", "hydra_plugins")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 -- the arguments are constants
            ["git", "-C", str(REPOSITORY), *arguments],  # noqa: S607 -- git from the user's PATH
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@cache
def source_digest() -> str:
    """Return a hash of the source files, which identifies the code without git too."""
    paths = [p for name in CODE for p in (REPOSITORY / name, *(REPOSITORY / name).rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(p for p in paths if p.suffix in (".py", ".yaml") and p.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(REPOSITORY).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def own_code(config: Any) -> dict[str, dict[str, str]]:
    """Return checksums of the user's own modules that a config names, under `own_code`, if any.

    Modules that these import are not included.
    """
    files = own_files(config).items()
    code = {name: checksum(path.read_bytes()) for name, path in files}
    return {"own_code": code} if code else {}


@cache
def git_state() -> dict[str, str | bool | None]:
    """Return the commit, and whether the code differs from the commit; None if unknown."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *CODE) if commit else None
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


@cache
def versions() -> dict[str, str | None]:
    """Return the versions of Python, CUDA and the packages that affect results."""
    packages = ("torch", "torchvision", "timm", "pillow", "numpy", "hydra-core", "omegaconf")
    return {
        "python": platform.python_version(),
        "phaseavg": phaseavg.__version__,  # works without an installation too
        **{package: version(package) for package in packages},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def device_name(device: torch.device) -> str:
    """Return the product name of a device, or the machine type if the name is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if device.type == "cpu" and cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return name[1].strip() if name else platform.machine()


HOW = {
    "compile": "compiled",
    "graph": "CUDA graph",
    "channels_last": "channels last",
    "sync_batchnorm": "synchronised BatchNorm",
}


def execution_words(execution: Mapping[str, Any]) -> list[str]:
    """Return the precision and the other execution options of a run in words."""
    words = [word for option, word in HOW.items() if execution.get(option)]
    nondeterministic = ["not deterministic"] * (execution.get("deterministic") is False)
    number = str(execution.get("processes", 1))
    processes = [f"{number} processes"] * (number != "1")
    return [execution["precision"], *words, *nondeterministic, *processes]


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory statistics of a GPU."""
    if device.type == "cuda":
        torch.cuda.init()  # the next two calls do not initialise CUDA
        torch.cuda.empty_cache()  # memory of earlier runs in this process
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory that a GPU's allocator reserved since the last reset.

    Reserved memory includes the memory of CUDA graphs. On the CPU, return the peak resident memory
    of the process, over all its runs.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def provenance(device: torch.device, execution: Mapping[str, Any]) -> dict[str, Any]:
    """Return the execution, versions, git commit and source hash of a run."""
    return {
        "execution": {
            **execution,
            "device": str(device),
            "device_name": device_name(device),
            # CPUs with equal names may differ in capability, which changes rounding.
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            **({"processes": count()} if count() > 1 else {}),
        },
        "versions": versions(),
        "git": git_state(),
        "source": source_digest(),
    }
