"""Weights of the epochs that are computed from the epochs: the paper's "learnt" weights."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phaseavg.averaging.average import Parameters, is_averaged
from phaseavg.averaging.snapshots import is_intact, read, to_bytes, write_with_checksum

PIECE = 2**16
"""Entries of the weight vectors that are worked on at once, at most."""


class RNA:
    """Weights by regularised nonlinear acceleration, on which the paper's comparison rests.

    With θ_0 the weights at the window's start and R = [θ_t − θ_{t−1}] for t = 1…T,

        G = RᵀR / ‖RᵀR‖₂ (spectral norm), (G + ρI) z = 1, c = z / Σz, θ̄ = Σ c_t θ_t.

    The c_t sum to 1 and may be negative; ρ → ∞ makes them equal. They need all of the window's
    weights at once: T + 1 files, each of the size of the network.

    c_t goes with θ_t, the newer point of its difference, as in the authors' Python code and not in
    their MATLAB code. Only parameters count and are averaged, never buffers, which that code
    flattens too: the number of batches that BatchNorm has seen would drown the weights.

    Args:
        folder: where the weights of past epochs are stored; made when the first one comes.
        rho: ρ, the regularisation.
        window: K, how many of the latest epochs (differences) are weighted; None: all.

    Raises:
        ValueError: if `rho` is negative or not finite, or `window` not positive.

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
    """The average θ̄ = Σ c_t θ_t with the weights c_t of `RNA`.

    The weights of an epoch are a snapshot (`phaseavg.averaging.snapshots`), a file that is written
    once, under a name with its checksum, and never deleted: a checkpoint may refer to those of an
    earlier window. Delete the files that no checkpoint refers to (`files`) yourself. Products and
    sums are in float64, on the model's device, piece by piece.

    Raises:
        ValueError: if a parameter is complex, or sharded over several processes.
    """

    def __init__(self, model: nn.Module, weights: RNA, trainable_only: bool = False) -> None:
        self.weights = weights
        self.folder = weights._folder
        self._parameters = Parameters(model, trainable_only)
        parameters = self._floating(model)
        if any(p.is_complex() or hasattr(p, "to_local") for p in model.parameters()):
            raise ValueError(
                "weights=RNA: complex or sharded parameters cannot be averaged; choose others"
            )
        self._bytes = sum(p.nbytes for p in parameters.values())
        self._shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        # θ_0 of the next window: the weights, until they have to be written, then the file's name.
        self._start: bytes | str | None = None
        # List and matrix are replaced and never changed, so that a failure leaves the average as it
        # was, and a saved state stays what it is.
        self._files: list[str] = []  # of θ_{t−K}…θ_t, oldest first
        self._gram = torch.zeros(0, 0, dtype=torch.float64)  # RᵀR of those

    def start(self, model: nn.Module) -> None:
        """Take the weights of `model` as θ_0 of the next window; the present average stays."""
        self._start = to_bytes(self._floating(model))

    @torch.no_grad()
    def update(self, model: nn.Module, t: int, epochs: int) -> None:
        """Take the weights of `model` as θ_t of a window of `epochs` epochs; t = 1 opens it."""
        earlier, gram = self._files, self._gram
        if t == 1:
            if (start := self._start_file()) is None:
                raise RuntimeError("call start() before the first update of a window")
            earlier, gram = [start], gram.new_zeros(0, 0)
        files = [*earlier, self._write(to_bytes(self._floating(model)), t)]
        files = files[-(min(epochs, self.weights.window or epochs) + 1) :]
        snapshots = [read(self.folder / name) for name in files]
        device = _device(model)
        products = torch.zeros(len(files) - 1, dtype=torch.float64, device=device)
        for name in self._shapes:
            for rows in _pieces([s[name] for s in snapshots], device):
                differences = rows.diff(dim=0)
                products += differences @ differences[-1]
        kept = len(products) - 1
        new = gram.new_empty(kept + 1, kept + 1)
        new[:kept, :kept] = gram[len(gram) - kept :, len(gram) - kept :]
        new[kept, :] = new[:, kept] = products.cpu()
        self._files, self._gram, self._start = files, new, None

    def coefficients(self, t: int, epochs: int) -> list[float]:
        """Return c_1…c_t, which sum to 1; 0 for those that are no longer weighted."""
        return [0.0] * (t - len(self._gram)) + self._solved()[0].tolist()

    @property
    def notes(self) -> dict[str, Any]:
        """How the coefficients were computed: `condition` and `solved_by`; see `solve`."""
        return self._solved()[1]

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` by the average; leave its buffers alone."""
        weights = self._solved()[0].to(_device(model))
        snapshots = [read(self.folder / name) for name in self._files[1:]]
        for name, parameter in self._floating(model).items():
            pieces = _pieces([s[name] for s in snapshots], weights.device)
            average = torch.cat([weights @ rows for rows in pieces])
            parameter.copy_(average.view(parameter.shape))

    def storage(self, epochs: int) -> tuple[int, str]:
        """Return the bytes of the files of a window of `epochs` epochs, and where they are."""
        snapshots = min(epochs, self.weights.window or epochs) + 1
        return snapshots * self._bytes, f"files in {self.folder}"

    def files(self) -> list[Path]:
        """Return the files that the state refers to."""
        return [self.folder / name for name in (*self._files, self._start_file()) if name]

    def state_dict(self) -> dict[str, Any]:
        """Return what continuing needs, as tensors and file names."""
        return {
            "shapes": self._shapes,
            "gram": self._gram,
            "files": self._files,
            "start": self._start_file(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: if it is the state of another network, or a file is missing or damaged.
        """
        if state["shapes"] != self._shapes:
            raise ValueError("average: the state was saved for other parameters")
        for name in (*state["files"], state["start"]):
            if name and not is_intact(self.folder / name):
                raise ValueError(f"{self.folder / name} is missing or damaged")
        self._start, self._files, self._gram = state["start"], state["files"], state["gram"].cpu()

    def _solved(self) -> tuple[Tensor, dict[str, Any]]:
        return solve(self._gram, self.weights.rho)

    def _floating(self, model: nn.Module) -> dict[str, Tensor]:
        named = self._parameters.named(model)
        return {name: p for name, p in named.items() if is_averaged(p)}

    def _start_file(self) -> str | None:
        """Return the name of the file of θ_0, which is written now if it was not yet."""
        if isinstance(self._start, bytes):
            self._start = self._write(self._start, 0)
        return self._start

    def _write(self, content: bytes, t: int) -> str:
        return write_with_checksum(self.folder, f"snapshot-{t:04d}", content)


def _pieces(tensors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the entries of tensors of one shape in float64, `PIECE` at a time, a row per tensor."""
    vectors = [tensor.flatten() for tensor in tensors]
    for first in range(0, max(len(vectors[0]), 1), PIECE):
        rows = [vector[first : first + PIECE].to(device, torch.float64) for vector in vectors]
        yield torch.stack(rows)


def _device(model: nn.Module) -> torch.device:
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device  # MPS has no float64


def solve(gram: Tensor, rho: float) -> tuple[Tensor, dict[str, Any]]:
    """Return c from RᵀR, and notes on how it was computed.

    `solved_by` is `solve`; `least squares` where G + ρI is singular to working precision (an
    eigenvalue is below n ε times the largest; the authors wait for a pivot of exactly 0, which
    depends on rounding); `uniform` where these determine nothing: |Σz| < 1e-10, as the authors have
    it, no difference at all, or numbers that are not finite. `condition` is the condition number of
    G + ρI, None where that matrix is singular or does not exist.
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
