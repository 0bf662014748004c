"""Regularised nonlinear acceleration (RNA): the paper's "learnt" coefficients."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phaseavg.averaging.average import ParameterSelection, is_averaged
from phaseavg.averaging.snapshots import is_intact, read, to_bytes, write_with_checksum

CHUNK = 2**16
"""Maximum number of entries of the weight vectors per matrix product."""


class RNA:
    """Coefficients by regularised nonlinear acceleration ("learnt" in the paper).

    With θ_0 the weights at the start of the window and R = [θ_t − θ_{t−1}] for t = 1…T,

        G = RᵀR / ‖RᵀR‖₂ (spectral norm), (G + ρI) z = 1, c = z / Σz, θ̄ = Σ c_t θ_t.

    The c_t sum to 1 and may be negative; ρ → ∞ makes them equal. The solution needs all weights of
    the window at once: T + 1 snapshot files, each as large as the network.

    c_t multiplies θ_t, the newer point of its difference, as in the authors' Python code; their
    MATLAB code uses the older point. Only parameters enter R and the average. The authors' code
    also includes buffers, where BatchNorm's `num_batches_tracked` would dominate R.

    Args:
        folder: the folder for snapshots of past epochs; created with the first snapshot.
        rho: ρ, the regularisation.
        window: K, the number of latest epochs (differences) to average; None for all.

    Raises:
        ValueError: if `rho` is negative or not finite, or `window` is not positive.

    References:
        D. Scieur, E. Oyallon, A. d'Aspremont, F. Bach, "Nonlinear acceleration of CNNs", ICLR
        Workshop, 2018.
    """

    def __init__(self, folder: str | Path, rho: float = 1e-5, window: int | None = None) -> None:
        if not 0 <= rho < math.inf:
            raise ValueError(f"rho={rho} must be finite and not negative")
        if window is not None and window < 1:
            raise ValueError(f"window={window} must be positive")
        self._folder = Path(folder)
        self.rho = rho
        self.window = window


class RNAAverage:
    """The average θ̄ = Σ c_t θ_t with the coefficients c_t of `RNA`.

    Each epoch's weights are saved to a snapshot (`phaseavg.averaging.snapshots`). Snapshots are
    never deleted, because a checkpoint may refer to an earlier window. You may delete snapshots
    that no checkpoint refers to (`files`). Products and sums are computed in float64 on the model's
    device, one chunk at a time; `device` is not used.

    Raises:
        ValueError: if a parameter is complex, or sharded across processes.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: RNA,
        device: torch.device | str = "cpu",
        trainable_only: bool = False,
    ) -> None:
        self.weights = weights
        self.folder = weights._folder
        self._parameters = ParameterSelection(model, trainable_only)
        parameters = _averaged(self._parameters.tensors(model))
        if any(p.is_complex() or hasattr(p, "to_local") for p in model.parameters()):
            raise ValueError(
                "weights=RNA: complex or sharded parameters are not supported; use other weights"
            )
        self._shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        # θ_0 of the next window: the content of the snapshot, or its file name once written.
        self._start: bytes | str | None = None
        # `update` replaces the list and the matrix instead of changing them in place. An exception
        # then leaves the average unchanged, and earlier state dicts stay valid.
        self._files: list[str] = []  # snapshots of θ_{t−K}…θ_t, oldest first
        self._gram = torch.zeros(0, 0, dtype=torch.float64)  # RᵀR of these snapshots

    def start(self, model: nn.Module) -> None:
        """Set θ_0 of the next window to the weights of `model`; the average is unchanged."""
        self._start = to_bytes(_averaged(self._parameters.tensors(model)))

    @torch.no_grad()
    def update(self, model: nn.Module, t: int, epochs: int) -> None:
        """Add the weights of `model` as θ_t, with t = 1…`epochs`; t = 1 starts a new average."""
        trained = _averaged(self._parameters.trained(model))
        earlier, gram = self._files, self._gram
        if t == 1:
            if (start := self._start_file()) is None:
                raise RuntimeError("call start() before the first update of a window")
            earlier, gram = [start], gram.new_zeros(0, 0)
        files = [*earlier, self._write(to_bytes(trained), t)]
        files = files[-(min(epochs, self.weights.window or epochs) + 1) :]
        snapshots = [read(self.folder / name) for name in files]
        device = _device(model)
        products = torch.zeros(len(files) - 1, dtype=torch.float64, device=device)
        for name in self._shapes:
            for rows in chunks([s[name] for s in snapshots], device):
                differences = rows.diff(dim=0)
                products += differences @ differences[-1]
        last = len(products) - 1
        new_gram = gram.new_empty(last + 1, last + 1)
        new_gram[:last, :last] = gram[len(gram) - last :, len(gram) - last :]
        new_gram[last, :] = new_gram[:, last] = products.cpu()
        self._files, self._gram, self._start = files, new_gram, None

    def coefficients(self, t: int, epochs: int) -> list[float]:
        """Return c_1…c_t, which sum to 1; epochs outside the window have coefficient 0."""
        return [0.0] * (t - len(self._gram)) + self._solve()[0].tolist()

    @property
    def notes(self) -> dict[str, Any]:
        """Diagnostics of the coefficients: `condition` and `solved_by`, described in `solve`."""
        return self._solve()[1]

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` with the average; buffers are unchanged."""
        coefficients = self._solve()[0].to(_device(model))
        snapshots = [read(self.folder / name) for name in self._files[1:]]
        for name, parameter in _averaged(self._parameters.tensors(model)).items():
            parts = chunks([s[name] for s in snapshots], coefficients.device)
            average = torch.cat([coefficients @ rows for rows in parts])
            parameter.copy_(average.view(parameter.shape))

    def files(self) -> list[Path]:
        """Return the snapshots that the state refers to."""
        return [self.folder / name for name in (*self._files, self._start_file()) if name]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and file names."""
        return {
            "shapes": self._shapes,
            "gram": self._gram,
            "files": self._files,
            "start": self._start_file(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            ValueError: if the state was saved for another network, or a snapshot is missing or
                damaged.
        """
        if state["shapes"] != self._shapes:
            raise ValueError("average: the state was saved for other parameters")
        for name in (*state["files"], state["start"]):
            if name and not is_intact(self.folder / name):
                raise ValueError(f"{self.folder / name} is missing or damaged")
        self._start, self._files, self._gram = state["start"], state["files"], state["gram"].cpu()

    def _solve(self) -> tuple[Tensor, dict[str, Any]]:
        return solve(self._gram, self.weights.rho)

    def _start_file(self) -> str | None:
        """Return the name of the snapshot of θ_0; write it if necessary."""
        if isinstance(self._start, bytes):
            self._start = self._write(self._start, 0)
        return self._start

    def _write(self, content: bytes, t: int) -> str:
        return write_with_checksum(self.folder, f"snapshot-{t:04d}", content)


def _averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if is_averaged(tensor)}


def chunks(tensors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield float64 matrices of `CHUNK` columns: row i holds consecutive entries of tensor i."""
    vectors = [tensor.flatten() for tensor in tensors]
    for first in range(0, max(len(vectors[0]), 1), CHUNK):
        rows = [vector[first : first + CHUNK].to(device, torch.float64) for vector in vectors]
        yield torch.stack(rows)


def _device(model: nn.Module) -> torch.device:
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device  # MPS has no float64


def solve(gram: Tensor, rho: float) -> tuple[Tensor, dict[str, Any]]:
    """Return c from RᵀR, and diagnostics.

    `condition` is the condition number of G + ρI, or None if G + ρI is singular or undefined.
    `solved_by` is `least squares` if G + ρI has an eigenvalue below n ε times the largest (the
    authors check for a pivot of exactly 0, which depends on rounding). It is `uniform` if
    |Σz| < 1e-10, as in the authors' code, or if RᵀR is zero or not finite; otherwise `solve`.
    """
    size = len(gram)
    uniform = torch.full((size,), 1 / max(size, 1), dtype=torch.float64)
    notes = {"condition": None, "solved_by": "uniform"}
    if not gram.any() or not gram.isfinite().all():
        return uniform, notes
    eigenvalues = torch.linalg.eigvalsh(gram)
    norm = eigenvalues[-1]
    matrix = gram / norm + rho * torch.eye(size, dtype=torch.float64)
    ones = torch.ones(size, 1, dtype=torch.float64)
    smallest, largest = (eigenvalues[[0, -1]] / norm + rho).tolist()
    precision = size * torch.finfo(torch.float64).eps
    if smallest > precision * largest:
        notes = {"condition": largest / smallest, "solved_by": "solve"}
        z = torch.linalg.solve(matrix, ones)[:, 0]
    else:
        notes = {"condition": None, "solved_by": "least squares"}
        z = torch.linalg.lstsq(matrix, ones, rcond=precision, driver="gelsd").solution[:, 0]
    if z.sum().abs() < 1e-10:
        return uniform, notes | {"solved_by": "uniform"}
    return z / z.sum(), notes
