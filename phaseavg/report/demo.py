"""What the demo shows: SGD, SGD after a BatchNorm pass, and the average, at each phase end."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from phaseavg.report.phase_ends import read_repetitions
from phaseavg.report.statistics import mean_and_deviation

SGD, BN, AVERAGE = "SGD", "SGD + BN pass", "average"
COLOURS = {SGD: "#4c566a", BN: "#0072b2", AVERAGE: "#d55e00"}
LABELS = {SGD: "SGD", BN: "SGD after a BN pass", AVERAGE: "phase-wise average"}
DIFFERENCES = {
    f"{AVERAGE} − {SGD}": (AVERAGE, SGD),
    f"{AVERAGE} − ({BN})": (AVERAGE, BN),
    "BN pass alone": (BN, SGD),
}


def phase_ends(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the test error (%) of the three, a row per phase end and seed.

    SGD is the run without averaging; the average is that of the phase-wise run, whose first phase
    is the same trajectory and whose later phases start from the average.
    """
    ends = metrics[metrics["replaced"].notna()].set_index(["phase", "epoch", "seed"]).sort_index()
    plain = ends[ends["averaging"] == "noaveraging"]
    averaged = ends[ends["averaging"] == "phasewise"]
    return pd.DataFrame(
        {
            SGD: plain["weights.error"],
            BN: plain["bn.error"],
            AVERAGE: averaged["average.error"],
        }
    ).dropna()


def summary_table(errors: pd.DataFrame) -> pd.DataFrame:
    """Return a row per phase: n, each of the three, and the differences paired by seed."""
    rows = []
    for (phase, epoch), group in errors.groupby(level=["phase", "epoch"]):
        row = {"end of": f"phase {phase} (epoch {epoch})", "n": len(group)}
        row |= {name: mean_and_deviation(group[name]) for name in (SGD, BN, AVERAGE)}
        for name, (left, right) in DIFFERENCES.items():
            row[name] = mean_and_deviation(group[left] - group[right], "+")
        rows.append(row)
    return pd.DataFrame(rows)


def figure(metrics: pd.DataFrame) -> Figure:
    """Return test error (%) against epochs: all seeds, phase boundaries, the average on the way."""
    plain = metrics[metrics["averaging"] == "noaveraging"]
    averaged = metrics[metrics["averaging"] == "phasewise"]
    ends = plain[plain["replaced"].notna()]
    picture = Figure(figsize=(8, 4.5), layout="constrained")
    axes = picture.subplots()
    for name, runs, column in (
        (SGD, plain, "weights.error"),
        (AVERAGE, averaged, "average.error"),
    ):
        seeds = runs.pivot_table(index="epoch", columns="seed", values=column)
        axes.plot(seeds.index, seeds, color=COLOURS[name], linewidth=0.6, alpha=0.45)
        axes.plot(
            seeds.index,
            seeds.mean(axis=1),
            color=COLOURS[name],
            linewidth=2.2,
            label=f"{LABELS[name]}: mean of {seeds.shape[1]} seeds, and each",
        )
    axes.scatter(
        ends["epoch"],
        ends["bn.error"],
        marker="x",
        color=COLOURS[BN],
        zorder=3,
        clip_on=False,
        label=LABELS[BN],
    )
    for phase, rows in plain.groupby("phase"):
        first, last = rows["epoch"].min(), rows["epoch"].max()
        axes.annotate(
            f"phase {phase}, learning rate {rows['learning_rate'].iloc[0]:g}",
            ((first + last) / 2, 0.97),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=8,
        )
        if first > 1:
            axes.axvline(first - 0.5, color="black", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    ticks = [2, 3, 5, 10, 20, 50, 100]
    axes.set_yticks(ticks, labels=[str(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlim(0.5, metrics["epoch"].max() + 0.5)
    axes.set_ylim(top=130)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test error (%)")
    axes.legend(edgecolor="none", framealpha=1, loc="upper right", bbox_to_anchor=(1, 0.93))
    axes.spines[["top", "right"]].set_visible(False)
    return picture


def write_demo(runs_dir: Path, output: Path) -> str:
    """Write table and figure of the demo's runs to `output`; return the table.

    Files: `table.md`, `phase_ends.csv` (each seed), `runs.csv` (with what each run was made),
    `errors.png`, and `errors.svg`.
    """
    runs, metrics = read_repetitions(runs_dir, ["averaging"])
    errors = phase_ends(metrics)
    output.mkdir(parents=True, exist_ok=True)
    errors.round(4).to_csv(output / "phase_ends.csv")
    runs.drop(columns=["path", "segments"]).to_csv(output / "runs.csv", index=False)
    picture = figure(metrics)
    picture.savefig(output / "errors.png", dpi=150)
    with matplotlib.rc_context({"svg.hashsalt": "demo"}):  # the same bytes for the same data
        picture.savefig(output / "errors.svg", metadata={"Date": None})
    table = (
        "Test error (%) on the 797 clean digits, mean ± sample deviation over n seeds; differences "
        "are paired by seed.\n\n" + summary_table(errors).to_markdown(index=False) + "\n"
    )
    (output / "table.md").write_text(table)
    return table
