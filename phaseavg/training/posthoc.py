"""Average weights that a training has left on disk."""

import json
import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from phaseavg.averaging import (
    BEMA,
    Blend,
    Exponential,
    FromDecay,
    HalfLife,
    Tail,
    Uniform,
    recompute_batchnorm,
)
from phaseavg.averaging.average import is_averaged
from phaseavg.averaging.rna import chunks, solve
from phaseavg.averaging.weights import coefficients
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.errors import UserError, describe
from phaseavg.phases import Phase, Schedule
from phaseavg.runs.folder import TRAJECTORY
from phaseavg.targets import build
from phaseavg.training.evaluation import Evaluation, evaluate
from phaseavg.training.execution import autocast
from phaseavg.training.trajectory import missing_steps, weights_path

Weights = Mapping[str, Tensor]
"""Tensors by name, read from disk on access."""

HUGGING_FACE = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
NESTED = ("state_dict", "model")
"""Keys under which training frameworks save the state dict of a network."""

BATCHNORM = ("running_mean", "running_var")
CPU = torch.device("cpu")


# Reading


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, read from disk on access."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def find_weights(paths: Sequence[Path]) -> list[Path]:
    """Return the files and Hugging Face folders in `paths`; those of a folder in natural order.

    Raises:
        UserError: if a path does not exist, or a folder contains no weights.
    """
    found = []
    for path in paths:
        if path.is_file() or _is_hugging_face(path):
            found.append(path)
            continue
        inside = [p for p in path.glob("*") if p.suffix in SUFFIXES or _is_hugging_face(p)]
        if not inside:
            raise UserError(f"{path}: no weights found; choices: files *{', *'.join(SUFFIXES)}")
        found += sorted(inside, key=lambda p: _natural(p.name))
    return found


def _is_hugging_face(path: Path) -> bool:
    return any((path / name).is_file() for name in HUGGING_FACE)


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sorting key with which `step-9` comes before `step-10`."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def open_weights(path: Path) -> Weights:
    """Open a safetensors file, a state dict of torch, or a Hugging Face folder; executes no code.

    Raises:
        UserError: if the file is damaged, or contains no state dict.
    """
    try:
        if path.is_dir():
            name = next(name for name in HUGGING_FACE if (path / name).is_file())
            if not name.endswith(".json"):
                return open_weights(path / name)
            shards = json.loads((path / name).read_text())["weight_map"].values()
            return ChainMap(*(SafetensorsFile(path / shard) for shard in sorted({*shards})))  # type: ignore[arg-type]
        if path.suffix == ".safetensors":
            return SafetensorsFile(path)
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path}: no readable weights ({describe(error)})") from error
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not (isinstance(content, Mapping) and content):
        raise UserError(f"{path}: contains no state dict")
    if other := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path}: {other[0]} is not a tensor; save the network's state dict alone")
    return content


# Coefficients


def _weights(kind: Callable[[float], Any]) -> Callable[[str, int], list[float]]:
    return lambda value, count: coefficients(kind(float(value)), count, count)


def _last(value: str, count: int) -> list[float]:
    if not 1 <= (latest := int(value or 1)) <= count:
        raise ValueError(f"must be between 1 and {count}, the number of files")
    return [0.0] * (count - latest) + [1 / latest] * latest


BY_COUNT: dict[str, Callable[[str, int], list[float]]] = {
    "exponential": _weights(Exponential),
    "half_life": _weights(HalfLife),
    "tail": _weights(Tail),
    "blend": _weights(lambda amount: Blend(Exponential(), amount)),
    "last": _last,
    "uniform": lambda _, count: coefficients(Uniform(), count, count),
    "from_decay": lambda value, count: coefficients(FromDecay(value), count, count),
}
"""Coefficients by the name of the average, from its value and the number of files."""


def _bema(_: str, files: Sequence[Weights]) -> list[float]:
    later = BEMA().coefficients(len(files) - 1)
    return [1 - sum(later), *later]


def _rna(value: str, files: Sequence[Weights]) -> list[float]:
    gram = torch.zeros(len(files) - 1, len(files) - 1, dtype=torch.float64)
    for name in averaged_names(files):
        for rows in chunks([file[name] for file in files], CPU):
            differences = rows.diff(dim=0)
            gram += differences @ differences.T
    return [0.0, *solve(gram, float(value or 1e-5))[0].tolist()]


FROM_START: dict[str, Callable[[str, Sequence[Weights]], list[float]]] = {
    "rna": _rna,
    "bema": _bema,
}
"""Coefficients from the value and the files, the first of which is the start of the window."""


def coefficients_of(average: str, files: Sequence[Weights], start: bool = False) -> list[float]:
    """Return the coefficients of files for an average such as `tail=0.25`.

    Args:
        average: a name of `BY_COUNT` or `FROM_START`, and its value.
        files: the weights, oldest first.
        start: whether the first file has the weights at the start of the window.

    Raises:
        UserError: if there is no such average, or its value is invalid.
    """
    name, _, value = average.partition("=")
    try:
        if name in FROM_START:
            return FROM_START[name](value, files)
        if name in BY_COUNT:
            return [0.0] * start + BY_COUNT[name](value, len(files) - start)
    except ValueError as error:
        raise UserError(f"--average={average}: {error}") from error
    choices = ", ".join([*BY_COUNT, *FROM_START])
    raise UserError(f"--average={average}: unknown; choices: {choices}")


def mean_age(alphas: Sequence[float]) -> float:
    """Return the mean age of the weights in an average, Σ α_t (T − t), in files."""
    return sum(a * age for age, a in enumerate(reversed(alphas)))


def phase_files(
    folder: Path, settings: Settings, data: DataSet, number: int | None
) -> tuple[Phase, list[Path]]:
    """Return a phase, and the files with the weights at its start and at the end of each epoch.

    Args:
        folder: the folder of a run with save_trajectory=epochs or steps.
        settings: the run's settings.
        data: the run's data set.
        number: the number of the phase, from 1; None for the last.

    Raises:
        UserError: if there is no such phase, or a file is missing.
    """
    phases = build("schedule", settings.schedule, Schedule).phases
    if number is not None and not 1 <= number <= len(phases):
        raise UserError(f"--phase={number}: must be between 1 and {len(phases)}")
    phase = phases[(number or 0) - 1]
    steps = [e * data.steps_per_epoch for e in range(phase.first_epoch, phase.end + 1)]
    if missing := missing_steps(folder / TRAJECTORY, steps):
        raise UserError(
            f"{folder}: has no weights after step {missing[0]}; train it with "
            "save_trajectory=epochs rerun=true"
        )
    return phase, [weights_path(folder / TRAJECTORY, step) for step in steps]


# Averaging


def averaged_names(files: Sequence[Weights]) -> list[str]:
    """Return the names of the tensors to average: floating point, except BatchNorm statistics.

    Raises:
        UserError: if the files differ in their tensors.
    """
    shapes = {name: tensor.shape for name, tensor in files[-1].items()}
    for number, file in enumerate(files, start=1):
        if {name: tensor.shape for name, tensor in file.items()} != shapes:
            raise UserError(f"file {number} of {len(files)}: has other tensors than the last file")
    return [
        name
        for name, tensor in files[-1].items()
        if is_averaged(tensor) and not tensor.is_complex() and not name.endswith(BATCHNORM)
    ]


def average_files(
    files: Sequence[Weights], alphas: Sequence[Sequence[float]]
) -> list[dict[str, Tensor]]:
    """Return one state dict per row of coefficients; each file is read once.

    Sums are computed in float64. Integers and BatchNorm statistics are those of the last file.

    Args:
        files: the weights θ_1…θ_T.
        alphas: the coefficients of θ_1…θ_T for each average.
    """
    names = set(averaged_names(files))
    matrix = torch.tensor(alphas, dtype=torch.float64)
    averages: list[dict[str, Tensor]] = [{} for _ in alphas]
    for name, last in track(list(files[-1].items()), "averaging", transient=True):
        if name in names:
            rows = chunks([file[name] for file in files], CPU)
            combined = torch.cat([matrix @ part for part in rows], dim=1).to(last.dtype)
            tensors = [row.reshape(last.shape) for row in combined]
        else:
            tensors = [last] * len(averages)
        for average, tensor in zip(averages, tensors, strict=True):
            average[name] = tensor.clone()
    return averages


def write_average(path: Path, average: Weights, metadata: Mapping[str, Any]) -> None:
    """Write an average as safetensors, with metadata as JSON.

    Raises:
        UserError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {key: json.dumps(value) for key, value in metadata.items()}
        save_file(dict(average), temporary, text)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output={path.parent}: cannot write {path.name} ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def evaluate_average(
    average: Weights, model: nn.Module, settings: Settings, data: DataSet, epoch: int
) -> Evaluation:
    """Load an average into a run's network, recompute its BatchNorm statistics and test it.

    Args:
        average: the state dict.
        model: the network; its weights are replaced.
        settings: the run's settings.
        data: the run's data set.
        epoch: finished epochs of the run, which determine the images of the BatchNorm pass.

    Raises:
        UserError: if the average has other tensors than the network.
    """
    try:
        model.load_state_dict(average)
    except RuntimeError as error:
        raise UserError(f"the weights do not fit the run's network ({describe(error)})") from error
    batches = data.batchnorm_batches(epoch, settings.batchnorm_batches)
    with torch.inference_mode(), autocast(data.device, settings.execution.precision):
        recompute_batchnorm(model, batches)
    with torch.inference_mode(), autocast(data.device, settings.execution.precision):
        return evaluate(model, data.test_batches())
