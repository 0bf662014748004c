"""Weights of the epochs that are learnt from the epochs themselves."""

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phaseavg.averaging.snapshots import FileStore, MemoryStore


class Learnt:
    """Weights by regularised nonlinear acceleration, on which the paper's comparison rests.

    With θ_0 the weights at the window's start and R = [θ_t − θ_{t−1}] for t = 1…T,

        G = RᵀR / ‖RᵀR‖₂ (spectral norm), (G + ρI) z = 1, c = z / Σz, θ̄ = Σ c_t θ_t.

    The c_t sum to 1 and may be negative; ρ → ∞ makes them equal. They need all of the window's
    weights at once, T + 1 snapshots of the network where the other averages keep one.

    Where the reference leaves a choice: c_t goes with θ_t, the newer point of its difference, as in
    the authors' Python code and not in their MATLAB code. Only parameters count and are averaged,
    never buffers, which that code flattens too: in R the number of batches that BatchNorm has seen
    would drown the weights.

    Args:
        rho: ρ, the regularisation.
        window: K, how many of the latest epochs (differences) are weighted; None: all.
        folder: where the snapshots are kept, as files; None: in memory, on the average's device.

    Raises:
        ValueError: if `rho` is negative or not finite, or `window` not positive.

    References:
        D. Scieur, E. Oyallon, A. d'Aspremont, F. Bach, "Nonlinear acceleration of CNNs", ICLR
        Workshop, 2018.
    """

    def __init__(
        self, rho: float = 1e-5, window: int | None = None, folder: str | Path | None = None
    ) -> None:
        if rho < 0:
            raise ValueError(f"rho={rho} must not be negative")
        if not math.isfinite(rho):
            raise ValueError(f"rho={rho} must be finite")
        if window is not None and window < 1:
            raise ValueError(f"window={window} must be positive")
        self.rho = rho
        self.window = window
        self.folder = None if folder is None else Path(folder)


class LearntAverage:
    """The average θ̄ = Σ c_t θ_t of the weights observed since `start`, with learnt c_t.

    Snapshots are kept in the widest type among the parameters, float32 at the least; all
    computation is in float64, on the model's device, piece by piece. Where the snapshots are kept
    changes no bit of the result.

    Files are never deleted here: a checkpoint may refer to those of a window that is over. Who
    keeps the checkpoints may delete the files that none of them refers to.

    Args:
        model: whose weights are averaged; wrapped by `torch.compile` or DDP or not.
        weights: how the epochs are weighted, and whether the snapshots are files.
        device: where snapshots in memory are kept.
    """

    def __init__(
        self, model: nn.Module, weights: Learnt, device: torch.device | str = "cpu"
    ) -> None:
        parameters = list(model.parameters())
        self.weights = weights
        self.window = 0
        self.n_averaged = 0
        self._sizes = [parameter.numel() for parameter in parameters]
        # At least float32: neither files nor averages are made in half precision.
        self._dtype = reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
        self._store: MemoryStore | FileStore = (
            MemoryStore(device)
            if weights.folder is None
            else FileStore(weights.folder, self._dtype)
        )
        # Of θ_{t−K}…θ_t, oldest first. Like the Gram matrix it is replaced and never changed, so
        # that a failure leaves the average as it was, and a state stays what it is.
        self._snapshots: list[Tensor] | list[str] = []
        self._start: Tensor | None = None  # θ_0, until it has to be kept
        self._gram = torch.zeros(0, 0, dtype=torch.float64)  # RᵀR of those

    def start(self, model: nn.Module, epochs: int) -> None:
        """Forget what was observed and open a window of `epochs` epochs from the model's weights.

        Writes nothing: a file of these weights is made when they are first used or saved.

        Raises:
            ValueError: if `epochs` is not positive.
        """
        if epochs < 1:
            raise ValueError(f"epochs={epochs} must be positive")
        self._start = self._flat(model)
        self._snapshots = []
        self._gram = self._gram.new_zeros(0, 0)
        self.window = epochs
        self.n_averaged = 0

    @torch.no_grad()
    def observe(self, model: nn.Module) -> None:
        """Take the weights of `model` as θ_t of the window's next epoch t.

        Raises:
            RuntimeError: if the window is full or was never opened.
        """
        if self.n_averaged >= self.window:
            raise RuntimeError(
                f"the window of {self.window} epochs is full: call start() for a new one"
            )
        t = self.n_averaged + 1
        earlier = self._kept()
        newest = self._store.put(self._flat(model), t)
        snapshots = [*earlier, newest][-self._most_snapshots(self.window) :]
        device = _computing_device(model)
        products = torch.zeros(len(snapshots) - 1, dtype=torch.float64, device=device)
        for first, last in self._pieces():
            products += _times_last(self._stacked(snapshots, first, last, device).diff(dim=0))
        kept = len(products) - 1
        gram = self._gram.new_empty(kept + 1, kept + 1)
        gram[:kept, :kept] = self._gram[len(self._gram) - kept :, len(self._gram) - kept :]
        gram[kept, :] = gram[:, kept] = products.cpu()
        self._snapshots, self._gram, self.n_averaged = snapshots, gram, t

    def coefficients(self) -> list[float]:
        """Return c_t for the epochs observed since `start`, 0 for those no longer weighted."""
        dropped = self.n_averaged - len(self._gram)
        return [0.0] * dropped + solve(self._gram, self.weights.rho)[0].tolist()

    @property
    def notes(self) -> dict[str, Any]:
        """How the coefficients were found, for the record: `condition` and `solved_by`.

        The condition number is that of G + ρI, None where there is none: see `solve`.
        """
        return solve(self._gram, self.weights.rho)[1]

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the parameters of `model` by the average; its buffers are left alone.

        Raises:
            RuntimeError: if nothing has been observed since `start`, or `close` was called.
        """
        if self.n_averaged == 0:
            raise RuntimeError("nothing has been averaged yet: call observe() after an epoch first")
        if not self._snapshots:
            raise RuntimeError("the window was closed: call start() for a new one")
        device = _computing_device(model)
        weights = solve(self._gram, self.weights.rho)[0].to(device)
        newer = self._snapshots[1:]
        average = torch.empty(sum(self._sizes), dtype=self._dtype, device=self._store.device)
        for first, last in self._pieces():
            average[first:last].copy_(weights @ self._stacked(newer, first, last, device))
        parameters = model.parameters()
        for parameter, values in zip(parameters, average.split(self._sizes), strict=True):
            parameter.copy_(values.view_as(parameter))

    def close(self) -> None:
        """Forget the snapshots of a window that is over; its coefficients stay."""
        self._start, self._snapshots = None, []

    def state_dict(self) -> dict[str, Any]:
        """Return all that continuing needs, as tensors, numbers and names of files."""
        return {
            "window": self.window,
            "n_averaged": self.n_averaged,
            "gram": self._gram,
            "snapshots": list(self._kept()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; snapshots in memory may become files.

        Raises:
            ValueError: if the snapshots are files, and no folder was given, or one of them is
                missing or damaged.
        """
        oldest = state["n_averaged"] - len(state["gram"])
        snapshots = [self._store.restore(s, t) for t, s in enumerate(state["snapshots"], oldest)]
        self._gram, self.window, self.n_averaged = (
            state["gram"].cpu(),
            state["window"],
            state["n_averaged"],
        )
        self._start, self._snapshots = None, snapshots

    def files(self) -> list[Path]:
        """Return the files that the state refers to: none if the snapshots are in memory."""
        return self._store.files(self._kept())

    def storage(self, epochs: int) -> tuple[int, str]:
        """Return how many bytes a window of `epochs` epochs takes at its end, and where."""
        size = sum(self._sizes) * self._dtype.itemsize
        return self._most_snapshots(epochs) * size, str(self._store)

    def _kept(self) -> list[Tensor] | list[str]:
        """Return the snapshots, θ_0 among them from now on."""
        if self._start is not None:
            self._snapshots = [self._store.put(self._start, 0)]
            self._start = None
        return self._snapshots

    def _most_snapshots(self, epochs: int) -> int:
        return min(epochs, self.weights.window or epochs) + 1

    @torch.no_grad()
    def _flat(self, model: nn.Module) -> Tensor:
        # Not `parameters_to_vector`: it refuses channels_last weights, and its vector would be
        # short-lived memory on the model's device.
        vector = torch.empty(sum(self._sizes), dtype=self._dtype, device=self._store.device)
        parameters = model.parameters()
        for parameter, values in zip(parameters, vector.split(self._sizes), strict=True):
            values.view_as(parameter).copy_(parameter)
        return vector

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Yield the ends of the pieces that the vectors are worked on in.

        Sums depend on them in their last bits. So they depend on nothing that differs between two
        stores, or before and after a restart. In float64 a piece of all snapshots and one of their
        differences take the memory of one snapshot in float32.
        """
        total = sum(self._sizes)
        size = min(2**16, max(2**10, total // (4 * self._most_snapshots(self.window))))
        for first in range(0, total, size):
            yield first, min(first + size, total)

    def _stacked(
        self,
        snapshots: Sequence[Tensor] | Sequence[str],
        first: int,
        last: int,
        device: torch.device,
    ) -> Tensor:
        """Return a piece of the snapshots as rows, in memory aligned alike for every store."""
        rows = torch.empty(len(snapshots), last - first, dtype=torch.float64, device=device)
        for row, snapshot in zip(rows, snapshots, strict=True):
            row.copy_(self._store.piece(snapshot, first, last))
        return rows


def solve(gram: Tensor, rho: float) -> tuple[Tensor, dict[str, Any]]:
    """Return c from RᵀR, and how it was found.

    `solved_by` is `solve`; `least squares` where G + ρI is singular to working precision; `uniform`
    where these determine nothing: |Σz| < 1e-10, as the authors have it, no difference at all, or
    numbers that are not finite. `condition` is the condition number of G + ρI, None where that
    matrix is singular or does not exist.

    The authors call a matrix singular only if elimination meets a pivot of exactly 0, which depends
    on rounding; here it is if an eigenvalue is below n ε times the largest.
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


def _times_last(rows: Tensor) -> Tensor:
    return rows @ rows[-1]


def _computing_device(model: nn.Module) -> torch.device:
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device  # which has no float64
