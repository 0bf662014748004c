"""What the benchmarks share: settings of a run, a stopwatch, cells of a table, and the report."""

import argparse
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from phaseavg.cli import explained
from phaseavg.config import Settings, check
from phaseavg.data.resident import ResidentImages
from phaseavg.errors import UserError
from phaseavg.runs.provenance import device_name, versions

CONF = Path(__file__).parents[1] / "conf"


def parser_of(description: str, rounds: int, seconds: float) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has, with its defaults of two of them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts")
    parser.add_argument("--rounds", type=positive, default=rounds, help="at most")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="for each network; two rounds in any case"
    )
    parser.add_argument("--threads", type=positive, help="of torch; its own choice if left out")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    return parser


def positive(typed: str) -> int:
    """Return a number of the command line that has to be positive."""
    if (number := int(typed)) < 1:
        raise ValueError
    return number


def settings_of(model: str, width: float, *overrides: str) -> Settings:
    """Return the settings of a run on CIFAR-100.

    Raises:
        UserError: if there is no such network, or it does not take a value.
    """
    typed = ["dataset=cifar100", f"model={model}", f"model.width={width}", "tracking=none"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return check(compose("config", [*typed, *overrides]))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explained(error)) from error


def noise_images(batch_size: int, device: torch.device) -> ResidentImages:
    """Return one batch of noise in place of CIFAR-100, cropped and flipped as that is."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch_size, 3, 32, 32), dtype=np.uint8)
    labels = random.integers(0, 100, batch_size)
    part = (images, labels)
    return ResidentImages(part, part, 100, batch_size, seed=0, padding=4, flip=True, device=device)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Return how long a call takes, until the device has done its work."""

    def synchronised() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    start = synchronised()
    call()
    return synchronised() - start


def repeated(
    one_round: Callable[[int], dict[str, float]], rounds: int, seconds: float
) -> pd.DataFrame:
    """Return what each round has measured, a row each: two at least, then while time is left.

    Args:
        one_round: measures everything once; gets the number of the round.
        rounds: at most.
        seconds: after which no further round begins.
    """
    start, measured = time.perf_counter(), []
    while len(measured) < rounds:
        if len(measured) >= 2 and time.perf_counter() - start > seconds:
            break
        measured.append(one_round(len(measured)))
    return pd.DataFrame(measured)


def cell(values: pd.Series, low: float = 0.0, high: float = 1.0) -> str:
    """Return the median of values and two of their quantiles: `0.12 (0.11–0.15)`."""
    # Three digits, and no power of ten before the million.
    digits = [f"{float(f'{value:.3g}'):g}" for value in values.quantile([0.5, low, high])]
    return "{} ({}–{})".format(*digits)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table."""
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def report(
    title: str,
    device: torch.device,
    paragraphs: Sequence[str],
    output: Path | None,
    packages: Sequence[str] = (),
) -> None:
    """Print a report, headed by what it was measured on, and write it to `output`, if given.

    Args:
        title: of the report.
        device: that the work was done on.
        paragraphs: text and tables.
        output: a Markdown file.
        packages: whose versions count besides those that a run records.
    """
    used = {**versions(), **{package: version(package) for package in packages}}
    names = [device_name(device)]
    if device.type != "cpu":
        names.append(device_name(torch.device("cpu")))
    facts = [
        f"- device: {device} ({', '.join(names)})",
        f"- threads: {torch.get_num_threads()}",
        f"- {', '.join(f'{name} {number}' for name, number in used.items() if number)}",
    ]
    text = "\n\n".join([f"# {title}", "\n".join(facts), *paragraphs])
    print(text, flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
