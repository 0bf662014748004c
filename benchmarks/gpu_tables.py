"""What gpu.py has measured, as it is read: a row for each way or kernel."""

from collections.abc import Callable

import pandas as pd
import torch

from benchmarks.common import Goal
from phaseavg.runs.provenance import device_name

CIFAR = ("cnn13", "resnet34", "densenet121", "wrn28_10")
IMAGENET = ("resnet50", "resnext50", "vgg16")
EPOCH = {**dict.fromkeys(CIFAR, 50_000), **dict.fromkeys(IMAGENET, 1_281_167)}  # images
GOALS = {"cnn13": 0.7, "resnet34": 1.2, "densenet121": 3.0, "wrn28_10": 4.5}  # s, on an H200
PLAIN = "plain: TF32, NCHW"


def tables_of(part: str, rows: pd.DataFrame) -> list[dict[str, str]]:
    """Return the rows as they are read."""
    return [
        TABLES[part](row, rows[rows["network"] == row["network"]]) for _, row in rows.iterrows()
    ]


def way_row(row: pd.Series, of_network: pd.DataFrame) -> dict[str, str]:
    """Return a way beside the first of its network."""
    first = of_network["images_per_second"].iloc[0]
    return {
        "network": row["network"],
        "way": row["way"],
        "images/s": f"{row['images_per_second']:,.0f}",
        "epoch (s)": f"{EPOCH[row['network']] / row['images_per_second']:.3g}",
        f"times {of_network['way'].iloc[0]}": f"{row['images_per_second'] / first:.2f}",
        "memory (GB)": f"{row['peak_memory_bytes'] / 1e9:.2f}",
        "first steps (s)": f"{row['first_seconds']:.1f}",
    }


def network_row(row: pd.Series, of_network: pd.DataFrame) -> dict[str, str]:
    """Return a way beside the first of its network, and beside what the card can do."""
    epoch = EPOCH[row["network"]] / row["images_per_second"]
    return way_row(row, of_network) | {
        "least epoch (s)": f"{row['least_seconds']:.3g}",
        "share of it (%)": f"{100 * row['least_seconds'] / epoch:.0f}",
        "kernels of a step": f"{row['kernels']:.0f}",
    }


def kernel_row(row: pd.Series, _: pd.DataFrame) -> dict[str, str]:
    """Return a kernel."""
    return {
        "network": row["network"],
        "kernel": row["kernel"],
        "of a step (%)": f"{100 * row['share_of_step']:.1f}",
        "ms of a step": f"{row['milliseconds_per_step']:.3g}",
        "launches": f"{row['launches_per_step']:g}",
    }


TABLES: dict[str, Callable[[pd.Series, pd.DataFrame], dict[str, str]]] = {
    "networks": network_row,
    "determinism": way_row,
    "imagenet": network_row,
    "kernels": kernel_row,
}


def goals_of(part: str, rows: pd.DataFrame, device: torch.device, width: float) -> list[Goal]:
    """Return the headline of each network: how fast it is at best, and what was asked for."""
    if part not in ("networks", "imagenet"):
        return []
    found = []
    for name, of_network in rows.groupby("network", sort=False):
        best = of_network.loc[of_network["images_per_second"].idxmax()]
        epoch = EPOCH[name] / best["images_per_second"]
        asked = name in GOALS and width == 1 and "H200" in device_name(device)
        plain = of_network[of_network["way"] == PLAIN]["images_per_second"]
        ratio = f", {best['images_per_second'] / plain.iloc[0]:.2f} times as fast" * len(plain)
        found.append(
            Goal(
                f"epoch of {name} on {device_name(device)}, {best['way']}",
                "the plain loop",
                f"{epoch:.3g} s{ratio}",
                f"at most {GOALS[name]:g} s" if asked else "",
                epoch <= GOALS[name] if asked else None,
            )
        )
    return found
