"""Weights as safetensors: a tensor that has several names is written once, and read under all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

ABOUT = "snapshot"
"""In a file's metadata, as JSON: what it says of itself, and under `aliases` the names of tied
weights beside the one that each is written under. One entry, for safetensors writes several in no
order."""


def aliases_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names whose tensor has an earlier name, each with that."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if (known := first.setdefault(memory, name)) != name:
            aliases[name] = known
    return aliases


def to_bytes(tensors: Mapping[str, Tensor], **about: Any) -> bytes:
    """Return the content of a file.

    Args:
        tensors: by name.
        about: what else the file says of itself.

    Raises:
        ValueError: if safetensors cannot hold them.
    """
    try:
        if aliases := aliases_of(tensors):
            about = {**about, "aliases": aliases}
        # Copies: of its own memory, on the CPU and contiguous is all that safetensors takes.
        copies = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
            if name not in aliases
        }
        return safetensors.torch.save(copies, {ABOUT: json.dumps(about)} if about else None)
    except Exception as error:  # it has many ways to say so, and so has what is no tensor
        reason = " ".join(str(error).split())
        raise ValueError(f"safetensors cannot hold them ({reason})") from error


def about(file: safetensors.safe_open) -> dict[str, Any]:
    """Return what an open file says of itself."""
    return json.loads((file.metadata() or {}).get(ABOUT, "{}"))


def read(file: safetensors.safe_open) -> dict[str, Tensor]:
    """Return all weights of an open file, by name."""
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    return tensors | {
        name: tensors[first] for name, first in about(file).get("aliases", {}).items()
    }


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return all weights of a file, by name, on the CPU.

    Raises:
        OSError: if it cannot be read.
        safetensors.SafetensorError: if it is damaged.
    """
    with safetensors.safe_open(path, "pt") as file:
        return read(file)
