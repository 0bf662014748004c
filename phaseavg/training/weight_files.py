"""Read saved weights of any training: safetensors, state dicts of torch, Hugging Face folders."""

import json
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor

from phaseavg.errors import UserError, describe

StateDict = Mapping[str, Tensor]
"""Tensors by name, read from disk on access."""

HUGGING_FACE = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt")
SPECIAL = re.compile(r"(?<![a-z])(last|latest|best|final|recovery)(?![a-z])", re.IGNORECASE)
"""Words in the names of weights that repeat others, or are out of their order."""

NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training frameworks save the state dict of a network."""


def find_weights(paths: Sequence[Path]) -> list[Path]:
    """Return the files and Hugging Face folders in `paths`; those of a folder in natural order.

    In a folder, Hugging Face folders come before files, which may be the weights of the last one.
    Those without a number, or named `last`, `best`, `final`, … (`SPECIAL`), are left out if others
    remain.

    Raises:
        UserError: if a path does not exist, a folder contains no weights, or there is one file.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*"), key=lambda p: _natural(p.name))
        folders = _of_a_sequence([p for p in inside if _is_hugging_face(p)])
        files = _of_a_sequence([p for p in inside if p.is_file() and p.name.endswith(SUFFIXES)])
        whole = [path] if path.is_file() or _is_hugging_face(path) else []
        if not (weights := folders or whole or files):
            raise UserError(f"{path}: no weights found; choices: files *{', *'.join(SUFFIXES)}")
        found += weights
    if len(found) == 1:
        raise UserError(f"{found[0]}: the only file; an average needs two or more")
    return found


def _of_a_sequence(paths: list[Path]) -> list[Path]:
    """Return the paths without those that `find_weights` leaves out, which are printed."""
    kept = [p for p in paths if re.search(r"\d", p.name) and not SPECIAL.search(p.name)]
    if kept and (others := [path.name for path in paths if path not in kept]):
        print(f"left out: {', '.join(others)}", flush=True)
    return kept or paths


def _is_hugging_face(path: Path) -> bool:
    return any((path / name).is_file() for name in HUGGING_FACE)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sorting key with which `step-9` comes before `step-10`."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]


def open_weights(path: Path) -> StateDict:
    """Open a safetensors file, a state dict of torch, or a Hugging Face folder; executes no code.

    Raises:
        UserError: if the file is damaged, or contains no state dict.
    """
    try:
        if path.is_dir():
            name = next(name for name in HUGGING_FACE if (path / name).is_file())
            if not name.endswith(".json"):
                return open_weights(path / name)
            shards = sorted({*json.loads((path / name).read_text())["weight_map"].values()})
            return {n: t for shard in shards for n, t in open_weights(path / shard).items()}
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([Namespace]):  # timm saves its arguments
            content: Any = torch.load(path, "cpu", weights_only=True, mmap=is_zipfile(path))
    except UserError:
        raise
    except UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"contains a {unsafe[1]}, not only tensors" if unsafe else "is not a file of torch"
        raise UserError(f"{path}: {reason}; save the network's state dict alone") from error
    except Exception as error:  # damaged files raise many kinds
        raise UserError(f"{path}: no readable weights ({describe(error)})") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not (isinstance(content, Mapping) and content):
        raise UserError(f"{path}: contains no state dict")
    if other := [key for key, value in content.items() if not _is_plain(key, value)]:
        raise UserError(
            f"{path}: {other[0]}: must be a name with a dense tensor; save the network's state "
            "dict alone"
        )
    return content


def _is_plain(key: Any, value: Any) -> bool:
    if not isinstance(key, str) or not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and not (value.is_quantized or value.is_meta)
