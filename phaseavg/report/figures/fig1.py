"""Figure 1: losses of a run, and the path of its last layer's weights in each phase."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.report.figures.trajectory import TrajectoryRun, read_numbers
from phaseavg.training.trajectory import missing_steps, read_last_weight

COLUMNS = [
    *("run_id", "phase", "epoch", "learning_rate", "train_loss", "test_loss"),
    *("pc1", "pc2", "pc1_share", "pc2_share", "delay1", "delay2"),
]


def project(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points on the plane of their first two principal components.

    Args:
        weights: (epochs, entries), two epochs or more.

    Returns:
        The coordinates, (epochs, 2), and each component's share of the variance, (2,).
    """
    pca = PCA(2, svd_solver="full").fit(weights)
    return pca.transform(weights), pca.explained_variance_ratio_


def delays(weights: np.ndarray) -> np.ndarray:
    """Return ‖θ_t − θ_{t−1}‖ and ‖θ_t − θ_{t−2}‖ for t = 1…T, (T, 2); NaN for t − 2 < 0.

    Args:
        weights: θ_0 to θ_T, (T + 1, entries).
    """
    result = np.full((len(weights) - 1, 2), np.nan)
    for column, delay in enumerate((1, 2)):
        distances = np.linalg.norm(weights[delay:] - weights[:-delay], axis=1)
        result[delay - 1 :, column] = distances
    return result


def numbers(run: TrajectoryRun, path: Path) -> pd.DataFrame:
    """Return the numbers of Figure 1, a row per finished epoch.

    If snapshots are missing, return the saved numbers of an earlier drawing.

    Columns: run_id; phase; epoch; learning_rate; train_loss, the running loss of the epoch;
    test_loss; pc1, pc2, the weights of the last linear layer at the end of the epoch, projected on
    the phase's first two principal components; pc1_share, pc2_share, the components' shares of the
    variance; delay1, delay2, the distances of these weights from the weights one and two epochs
    before (delay2 from the phase's second epoch). NaN without snapshots.

    Args:
        run: the run, finished or not.
        path: the CSV file of saved numbers.
    """
    saved = read_numbers(path, run, COLUMNS)
    if not run.epochs:
        return saved
    losses = {"train.loss": "train_loss", "weights.loss": "test_loss"}
    frame = run.metrics.rename(columns=losses).assign(run_id=run.settings.run_id)
    frame = frame.reindex(columns=COLUMNS)
    steps = run.steps_per_epoch
    for phase in run.schedule.phases:
        epochs = range(phase.first_epoch, min(phase.end, run.epochs) + 1)
        ends = [epoch * steps for epoch in epochs]
        if len(epochs) < 3 or missing_steps(run.weights_folder, ends):
            continue
        layers = [read_last_weight(run.weights_folder, step) for step in ends]
        if any(layer is None for layer in layers):
            continue
        weights = np.stack([layer.double().numpy().ravel() for layer in layers])
        rows = frame["epoch"].isin(epochs[1:])
        coordinates, shares = project(weights[1:])
        frame.loc[rows, ["pc1", "pc2"]] = coordinates
        frame.loc[rows, ["pc1_share", "pc2_share"]] = shares
        frame.loc[rows, ["delay1", "delay2"]] = delays(weights)
    return saved if frame["pc1"].count() < saved["pc1"].count() else frame


def _losses(axes: Axes, data: pd.DataFrame) -> None:
    axes.plot(data["epoch"], data["train_loss"], color=COLOURS[0], label="training loss")
    tested = data.dropna(subset="test_loss")
    axes.plot(tested["epoch"], tested["test_loss"], color=COLOURS[1], label="test loss")
    for phase, rows in data.groupby("phase"):
        first = rows["epoch"].min()
        text = f"phase {phase}\nλ = {rows['learning_rate'].iloc[0]:g}"
        place = ((first + rows["epoch"].max()) / 2, 1.02)
        transform = axes.get_xaxis_transform()
        axes.text(*place, text, ha="center", va="bottom", fontsize=9, transform=transform)
        if first > 1:
            axes.axvline(first - 0.5, color="black", linestyle=":", linewidth=1)
    axes.set_xlim(0, data["epoch"].max() + 1)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.legend(edgecolor="none")


def _path(axes: Axes, rows: pd.DataFrame, names: tuple[str, str]) -> None:
    """Draw the points of a phase in the order of its epochs, from light to dark."""
    x, y = rows[names[0]], rows[names[1]]
    axes.plot(x, y, color="#b8bec8", linewidth=0.8, zorder=1)
    axes.scatter(x, y, c=rows["epoch"], cmap="viridis_r", s=14, zorder=2)
    for which, marker in ((0, "o"), (-1, "s")):
        label = f"epoch {rows['epoch'].iloc[which]}"
        axes.scatter(
            x.iloc[which], y.iloc[which], s=48, marker=marker, label=label, zorder=3,
            facecolors="none", edgecolors="black",
        )  # fmt: skip
    axes.ticklabel_format(scilimits=(-2, 3))
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_fontsize(8)
    axes.legend(fontsize=7.5, framealpha=0.8, edgecolor="none", handletextpad=0.1)


def draw(data: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw the losses over the epochs, and the path of the weights in each phase; see `numbers`."""
    phases = data["phase"].unique()
    picture = new_picture(3.1 * max(len(phases), 2), 8.5)
    grid = picture.add_gridspec(3, len(phases), height_ratios=[1.1, 1, 1])
    _losses(plain(picture.add_subplot(grid[0, :])), data)
    for column, phase in enumerate(phases):
        rows = data[data["phase"] == phase].dropna(subset=["pc1", "pc2"])
        plane, delay = (plain(picture.add_subplot(grid[row, column])) for row in (1, 2))
        if rows.empty:
            for axes in (plane, delay):
                axes.set_axis_off()
                axes.text(0.5, 0.5, "no snapshots", ha="center", transform=axes.transAxes)
            continue
        _path(plane, rows, ("pc1", "pc2"))
        share = rows[["pc1_share", "pc2_share"]].iloc[0].sum()
        plane.set_title(f"phase {phase}: PCA, {share:.0%} of variance", fontsize=9)
        plane.set_xlabel("first component", fontsize=8)
        _path(delay, rows.dropna(subset="delay2"), ("delay1", "delay2"))
        delay.set_title(f"phase {phase}: time delay", fontsize=9)
        delay.set_xlabel("‖θₜ − θₜ₋₁‖", fontsize=8)
        if column == 0:
            plane.set_ylabel("second component", fontsize=8)
            delay.set_ylabel("‖θₜ − θₜ₋₂‖", fontsize=8)
    return picture, data
