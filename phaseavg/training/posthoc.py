"""Average weights that a training has left on disk."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from phaseavg.atomic import replacing
from phaseavg.averaging import (
    BEMA,
    RNA,
    Blend,
    Exponential,
    FromDecay,
    HalfLife,
    Power,
    Tail,
    Uniform,
    Weights,
    recompute_batchnorm,
    reconstruct,
)
from phaseavg.averaging.average import is_averaged
from phaseavg.averaging.rna import chunks, solve
from phaseavg.averaging.weights import coefficients
from phaseavg.config import Settings
from phaseavg.data import DataSet
from phaseavg.errors import UserError, describe
from phaseavg.phases import Phase
from phaseavg.runs.folder import TRAJECTORY
from phaseavg.runs.prefixes import Prefixes
from phaseavg.training.evaluation import Evaluation, evaluate
from phaseavg.training.execution import autocast
from phaseavg.training.trajectory import missing_steps, weights_path
from phaseavg.training.weight_files import StateDict

BATCHNORM = ("running_mean", "running_var")
CPU = torch.device("cpu")


# Coefficients


class _Last:
    """Equal coefficients of the last `number` files, as a rule for coefficients."""

    def __init__(self, number: int) -> None:
        self.number = number

    def step(self, t: int, epochs: int) -> float:
        """Return w_t."""
        if not 1 <= self.number <= epochs:
            raise ValueError(f"must be between 1 and {epochs}, the number of files")
        return 1 / max(t - (epochs - self.number), 1)


RULES: dict[str, tuple[Callable[..., Weights | RNA | BEMA], Any]] = {
    "exponential": (Exponential, 0.9),
    "half_life": (HalfLife, 0.125),
    "tail": (Tail, 0.25),
    "power": (Power, 6.94),
    "blend": (lambda amount: Blend(Exponential(), amount), 0.5),
    "from_decay": (FromDecay, "1-sqrt"),
    "last": (_Last, 1),
    "uniform": (Uniform, None),
    "rna": (lambda rho: RNA("", rho), 1e-5),
    "bema": (BEMA, None),
}
"""The rule for the coefficients of each average, and the default of its value, if it has one."""


def coefficients_of(average: str, files: Sequence[StateDict], start: bool | None) -> list[float]:
    """Return the coefficients of files for an average such as `tail=0.25`.

    Args:
        average: a name of `RULES`, and its value.
        files: the weights, oldest first.
        start: whether the first file has the weights at the start of the window; None: only for
            RNA and BEMA, which need them.

    Raises:
        UserError: if there is no such average, its value is invalid, or the start is missing.
    """
    name, equals, value = average.partition("=")
    if name not in RULES:
        raise UserError(f"--average={average}: unknown; choices: {', '.join(RULES)}")
    rule, default = RULES[name]
    try:
        if equals and (default is None or not value):
            raise ValueError("takes no value" if default is None else "has no value")
        weights = rule() if default is None else rule(type(default)(value or default))
        if not isinstance(weights, RNA | BEMA):
            count = len(files) - bool(start)
            return [0.0] * bool(start) + coefficients(weights, count, count)
        if start is False:
            raise ValueError("the phase started from an average, which is not saved")
        if isinstance(weights, RNA):
            return [0.0, *solve(_gram(files), weights.rho)[0].tolist()]
        later = weights.coefficients(len(files) - 1)
        return [1 - sum(later), *later]
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--average={average}: {error}") from error


def _gram(files: Sequence[StateDict]) -> Tensor:
    """Return RᵀR, (K, K), in float64: R has the differences of K + 1 files in succession (`RNA`).

    Raises:
        ValueError: if a parameter is complex, or not finite.
    """
    gram = torch.zeros(len(files) - 1, len(files) - 1, dtype=torch.float64)
    for name in averaged_names(files):
        if files[-1][name].is_complex():
            raise ValueError(f"{name} is complex")
        for rows in chunks([file[name] for file in files], CPU):
            differences = rows.diff(dim=0)
            gram += differences @ differences.T
    if not gram.isfinite().all():
        raise ValueError("the weights are not finite")
    return gram


def reconstructed(average: str, stored: Sequence[str]) -> list[float]:
    """Return the coefficients of stored power-function averages for `power=γ` at their last time.

    Args:
        average: `power=γ`.
        stored: for each file, its time and γ, as `t:γ`.

    Raises:
        UserError: if the average is another one, or a value is invalid.
    """
    name, _, value = average.partition("=")
    if name != "power" or not value:
        raise UserError(f"--stored: needs --average power=γ, not {average}")
    where = f"--stored {' '.join(stored)}"
    try:
        pairs = [(float(t), float(gamma)) for t, gamma in (text.split(":") for text in stored)]
    except ValueError as error:
        raise UserError(f"{where}: must be T:GAMMA for each file") from error
    try:
        return reconstruct(pairs, max(t for t, _ in pairs), float(value))
    except ValueError as error:
        raise UserError(f"{where} --average {average}: {error}") from error


def mean_age(alphas: Sequence[float]) -> float:
    """Return the mean age of the weights in an average, Σ α_t (T − t), in files."""
    return sum(a * age for age, a in enumerate(reversed(alphas)))


def phase_files(
    folder: Path, settings: Settings, data: DataSet, number: int | None
) -> tuple[Phase, list[Path]]:
    """Return a phase, and the files with the weights at the end of each epoch.

    The weights at the start of the phase come first, unless an average may have replaced them.

    Args:
        folder: the folder of a run with save_trajectory=epochs or steps.
        settings: the run's settings.
        data: the run's data set.
        number: the number of the phase, from 1; None for the last.

    Raises:
        UserError: if there is no such phase, or a file is missing.
    """
    prefixes = Prefixes(settings)
    phases = prefixes.schedule.phases
    if number is not None and not 1 <= number <= len(phases):
        raise UserError(f"--phase={number}: must be between 1 and {len(phases)}")
    phase = phases[(number or 0) - 1]
    # A file holds the weights before an average replaces them.
    start_is_known = phase.first_epoch < max(prefixes.limit, 1)
    first = phase.first_epoch if start_is_known else phase.first_epoch + 1
    steps = [epoch * data.steps_per_epoch for epoch in range(first, phase.end + 1)]
    if missing := missing_steps(folder / TRAJECTORY, steps):
        raise UserError(
            f"{folder}: has no weights after step {missing[0]}; train the phase to its end with "
            "save_trajectory=epochs"
        )
    return phase, [weights_path(folder / TRAJECTORY, step) for step in steps]


# Averaging


def averaged_names(files: Sequence[StateDict]) -> list[str]:
    """Return the names of the tensors to average: all but BatchNorm statistics and integers.

    Raises:
        UserError: if the files differ in their tensors.
    """

    def kinds(file: StateDict) -> set[tuple[str, torch.Size, bool, bool]]:
        return {(n, t.shape, t.is_complex(), is_averaged(t)) for n, t in file.items()}

    last = kinds(files[-1])
    for number, file in enumerate(files, start=1):
        if different := {name for name, *_ in kinds(file) ^ last}:
            raise UserError(
                f"file {number} of {len(files)}: {min(different)} is missing, or has another "
                "shape or kind of numbers, here or in the last file"
            )
    return [
        name
        for name, tensor in files[-1].items()
        if is_averaged(tensor) and not name.endswith(BATCHNORM)
    ]


def average_files(
    files: Sequence[StateDict], alphas: Sequence[Sequence[float]]
) -> list[dict[str, Tensor]]:
    """Return one state dict per row of coefficients; each file is read once.

    Sums are computed in float64. BatchNorm statistics, integers, booleans and 8-bit floats are
    those of the last file. All averages are in memory at once.

    Args:
        files: the weights θ_1…θ_T.
        alphas: the coefficients of θ_1…θ_T for each average.
    """
    names = set(averaged_names(files))
    averages: list[dict[str, Tensor]] = [{} for _ in alphas]
    for name, last in track(list(files[-1].items()), "averaging", transient=True):
        if name in names:
            tensors = _combined([file[name] for file in files], alphas)
        else:
            tensors = [last] * len(averages)
        for average, tensor in zip(averages, tensors, strict=True):
            average[name] = tensor.clone(memory_format=torch.contiguous_format)
    return averages


def _combined(tensors: Sequence[Tensor], alphas: Sequence[Sequence[float]]) -> list[Tensor]:
    """Return Σ α_t θ_t for each row of coefficients, in the last tensor's type."""
    last = tensors[-1]
    if last.is_complex():
        real = _combined([torch.view_as_real(tensor) for tensor in tensors], alphas)
        return [torch.view_as_complex(tensor) for tensor in real]
    # Weights with coefficient 0 are left out, since 0 × inf is NaN.
    used = [[t for t, a in enumerate(alpha) if a] for alpha in alphas]
    rows = [
        torch.tensor([alpha[t] for t in index], dtype=torch.float64)
        for alpha, index in zip(alphas, used, strict=True)
    ]
    parts: list[list[Tensor]] = [[] for _ in alphas]
    for chunk in chunks(tensors, CPU):
        for part, row, index in zip(parts, rows, used, strict=True):
            part.append((row @ chunk[index]).to(last.dtype))
    return [torch.cat(part).reshape(last.shape) for part in parts]


def write_average(path: Path, average: StateDict, metadata: Mapping[str, Any]) -> None:
    """Write an average as safetensors, with metadata as JSON.

    Raises:
        UserError: if the file cannot be written.
    """
    text = {key: json.dumps(value) for key, value in metadata.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(dict(average), temporary, {"format": "pt", **text})
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a type that it cannot store
        raise UserError(f"--output={path.parent}: cannot write {path.name} ({error})") from error


def evaluate_average(
    average: StateDict, model: nn.Module, settings: Settings, data: DataSet, epoch: int
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
