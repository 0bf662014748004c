"""The processes that train one run together: one, or as many as torchrun starts.

    torchrun --standalone --nproc-per-node=4 train.py dataset=imagenet model=resnet50

All processes run the same program. Each trains on its share of every batch, and torch averages the
gradients; the first process alone reads and writes the run folder. Without torchrun there is one
process, and nothing here communicates.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from phaseavg.errors import FirstFailed, ProcessLost, describe

P = ParamSpec("P")
T = TypeVar("T")


def launched() -> bool:
    """Return whether torchrun started this process."""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


@contextmanager
def joined() -> Iterator[None]:
    """In this context, the processes that torchrun has started can communicate.

    Only the first process prints to standard output.

    Raises:
        ProcessLost: if another process has ended, or cannot be reached.
    """
    if not launched():
        yield
        return
    gpus = torch.cuda.is_available()
    try:
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
        with (
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere) if rank() else nullcontext(),
        ):
            yield
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        raise ProcessLost(
            f"process {os.environ['RANK']} lost contact with another process of this run "
            f"({describe(error)}); see the messages of the others, and rerun the same command to "
            "resume"
        ) from error
    # After an exception the process ends without this: others may still wait for it.
    torch.distributed.destroy_process_group()


def is_lost_contact(error: BaseException) -> bool:
    """Return whether an error says that another process has ended, or cannot be reached."""
    if not launched():
        return False
    gloo = ("Connection closed", "Connection reset", "Connection refused", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in gloo)
    )


def is_joined() -> bool:
    """Return whether this process can communicate with others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def count() -> int:
    """Return the number of processes."""
    return torch.distributed.get_world_size() if is_joined() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return torch.distributed.get_rank() if is_joined() else 0


def local_count() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if is_joined() else 1


def local_rank() -> int:
    """Return the number of this process on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if is_joined() else 0


_running: list[Callable] = []
"""The function that the first process runs for all, if any."""


def on_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that only the first process runs; all processes get its result.

    Every process must call it, and the result is pickled. In the first process it may call other
    decorated functions.

    Raises:
        FirstFailed: in the other processes, if the function fails in the first.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if count() == 1 or _running:
            return function(*args, **kwargs)
        outcome: list = [None, "interrupted"]  # result, error
        try:
            if rank() == 0:
                _running.append(function)
                outcome = [function(*args, **kwargs), None]
        except Exception as error:
            outcome[1] = str(error)
            raise
        finally:
            _running.clear()
            torch.distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise FirstFailed(outcome[1])
        return outcome[0]

    return run


def total(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; the tensor itself if there is one process."""
    if count() == 1:
        return tensor
    result = tensor.clone()
    torch.distributed.all_reduce(result)
    return result


def highest(values: Sequence[int]) -> list[int]:
    """Return the maximum of each value over all processes."""
    if count() == 1:
        return list(values)
    result = torch.tensor(values)
    torch.distributed.all_reduce(result, torch.distributed.ReduceOp.MAX)
    return result.tolist()


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if count() > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)
