"""What the benchmarks share: settings of a run, stopwatches, cells of a table, and the record."""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_dir

from benchmarks.page import RESULTS, TITLES, section
from phaseavg.cli import CONFIG_ERRORS, explained
from phaseavg.config import Settings, check
from phaseavg.errors import UserError
from phaseavg.runs.files import write_atomically
from phaseavg.runs.provenance import device_name, versions

CONF = Path(__file__).parents[1] / "conf"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Goal:
    """An outcome that stands on the first page.

    Attributes:
        what: was measured.
        beside: what it was measured against.
        measured: a ratio and its spread.
        goal: that was set; none by default.
        met: whether it is, where there is one and it was measured.
    """

    what: str
    beside: str
    measured: str
    goal: str = ""
    met: bool | None = None


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=TITLES[name],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    output = RESULTS / f"{name}.json"
    parser.add_argument("--output", type=Path, default=output, help="file of the record")
    return parser


def add_rounds(parser: argparse.ArgumentParser, rounds: int, seconds: float, each: str) -> None:
    """Add the options of what is measured in rounds, with defaults of two of them."""
    parser.add_argument("--rounds", type=positive, default=rounds, help="at most")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"for {each}; two rounds in any case"
    )
    parser.add_argument("--threads", type=positive, help="of torch; its own choice if left out")


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is measured on whole networks."""
    parser.add_argument("--width", type=float, default=1.0, help="factor on all channel counts")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")


def positive(typed: str) -> int:
    """Return a number of the command line that has to be positive."""
    if (number := int(typed)) < 1:
        raise ValueError
    return number


def settings_of(model: str, width: float | None, *overrides: str) -> Settings:
    """Return the settings of a run on CIFAR-100; `width` is for networks that have one.

    Raises:
        UserError: if there is no such network, or it does not take a value.
    """
    typed = ["dataset=cifar100", f"model={model}", "tracking=none"]
    typed += [] if width is None else [f"model.width={width}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return check(compose("config", [*typed, *overrides]))
        except CONFIG_ERRORS as error:
            raise UserError(explained(error)) from error


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Return how long a call takes, until the device has done its work."""

    def synchronised() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    start = synchronised()
    call()
    return synchronised() - start


def processor_seconds() -> float:
    """Return the processor's time of this process, and of its children that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def processor_seconds_of(call: Callable[[], Any]) -> float:
    """Return the processor's time that a call takes; processes that it starts have to end in it."""
    start = processor_seconds()
    call()
    return processor_seconds() - start


def turned(names: Sequence[str], number: int) -> list[str]:
    """Return names in the order of a round: each round begins with the next of them."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


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


def report(
    name: str,
    output: Path,
    device: torch.device,
    how: str,
    goals: Sequence[Goal],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    rounds: Mapping[str, pd.DataFrame],
    packages: Mapping[str, str] | None = None,
) -> None:
    """Print what was measured, and write its record.

    Args:
        name: of the benchmark.
        output: file of the record.
        device: that the work was done on.
        how: it was measured, in words.
        goals: the outcomes that count.
        tables: rows by caption.
        rounds: the numbers that all others come from, a row for each round, by what they are of.
        packages: versions that count besides those that a run records.
    """
    record = {
        "title": TITLES[name],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine_of(device, packages),
        "how": how,
        "goals": [asdict(goal) for goal in goals],
        "tables": [{"caption": caption, "rows": rows} for caption, rows in tables.items()],
        "rounds": {of: frame.to_dict("records") for of, frame in rounds.items()},
    }
    print(section(record), flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(output, f"{text}\n".encode(), place=f"--output={output}")


def machine_of(device: torch.device, packages: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what something is measured on and with.

    Args:
        device: that the work is done on.
        packages: versions that count besides those that a run records.
    """
    names = [device_name(device)]
    if device.type != "cpu":
        names.append(device_name(CPU))
    used = {**versions(), **(packages or {})}
    return {
        "device": f"{device} ({', '.join(names)})",
        "device_name": names[0],
        "threads": torch.get_num_threads(),
        "versions": {package: number for package, number in used.items() if number},
    }


def versions_of(*packages: str) -> dict[str, str]:
    """Return the versions of packages that are installed."""
    return {package: version(package) for package in packages}


def mistaken(name: str, error: UserError) -> int:
    """Say in one line what is wrong with a command; return the status to exit with."""
    print(f"{name}.py: {error}", file=sys.stderr)
    return 2
