"""What starting takes: from a fresh process to the first training step.

    python -m benchmarks.startup

A round starts each process once, in an order that turns from round to round: one that imports
torch, one that imports torch and torch.compile, and train.py until its first step is done, on the
digits with and without W&B (offline), and on CIFAR-100 if `--data-dir` has it. Each tells its time
since it was started, and what it has used of the processor, threads included.
"""

import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from benchmarks.common import (
    CPU,
    Goal,
    add_rounds,
    cell,
    mistaken,
    parser_of,
    repeated,
    report,
    turned,
)
from phaseavg.errors import UserError

GOAL = 3.0  # seconds beyond importing torch

TELL = """
import sys, time
def tell():
    print("told:", time.time(), time.process_time(), flush=True)
"""
IMPORT = "import torch\ntell()"
IMPORT_COMPILER = "import torch, torch._dynamo\ntell()"
FIRST_STEP = """
import train
from phaseavg.training.step import Step

def told(*arguments):
    call(*arguments)
    tell()
    raise KeyboardInterrupt

call, Step.__call__ = Step.__call__, told
train.command_line(train.main)
"""

TORCH, COMPILER = "import torch", "import torch, torch._dynamo"
DIGITS = "train.py, digits"
WANDB = "train.py, digits, W&B offline"
CIFAR = "train.py, CIFAR-100"


def processes(given: Namespace, folder: str) -> dict[str, list[str]]:
    """Return what Python is started with, by name."""
    network = ["model.width=0.125", "execution.device=cpu"]
    places = [f"runs_dir={folder}", f"records_dir={folder}", "rerun=true"]
    common = ["-c", TELL + FIRST_STEP, *places, "tracking=none"]
    digits = [*common, "dataset=digits", "model=cnn13_digits", *network]
    found = {
        TORCH: ["-c", TELL + IMPORT],
        COMPILER: ["-c", TELL + IMPORT_COMPILER],
        DIGITS: digits,
        WANDB: [*digits, "tracking=wandb", "tracking.mode=offline"],
    }
    if given.data_dir is not None:
        cifar = ["dataset=cifar100", f"data_dir={given.data_dir}", "model=cnn13"]
        found[CIFAR] = [*common, *cifar, *network]
    return found


def started(arguments: list[str], threads: int | None) -> tuple[float, float]:
    """Start Python; return the seconds until it tells, and those of the processor.

    Raises:
        UserError: if it does not get there.
    """
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    start = time.time()
    done = subprocess.run(  # noqa: S603 -- the arguments are this module's own
        [sys.executable, *arguments],
        cwd=Path(__file__).parents[1],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("told:")]
    if not told:
        raise UserError(f"a process did not get to its first step: {done.stderr.strip()}")
    _, now, processor = told[0].split()
    return float(now) - start, float(processor)


def one_round(number: int, given: Namespace) -> dict[str, float]:
    """Return seconds, of the clock and of the processor, of every process."""
    found: dict[str, float] = {}
    with TemporaryDirectory(prefix="phaseavg-") as folder:
        every = processes(given, folder)
        for name in turned(list(every), number):
            seconds, processor = started(every[name], given.threads)
            found |= {f"{name}: seconds": seconds, f"{name}: processor": processor}
    return found


def rows(measured: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each process."""
    names = [column.removesuffix(": seconds") for column in measured if ": seconds" in column]
    found = []
    for name in names:
        row = {"": name}
        for kind in ("seconds", "processor"):
            row[kind] = cell(measured[f"{name}: {kind}"])
        beyond = beyond_torch(measured, name)
        row["processor, beyond import torch"] = "" if name == TORCH else cell(beyond)
        found.append(row)
    return found


def beyond_torch(measured: pd.DataFrame, name: str) -> pd.Series:
    """Return the seconds of the processor that a process takes more than `import torch`."""
    return measured[f"{name}: processor"] - measured[f"{TORCH}: processor"]


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = parser_of("startup")
    add_rounds(parser, rounds=5, seconds=300, each="all")
    parser.add_argument("--data-dir", type=Path, help="with CIFAR-100, to start on that, too")
    return parser.parse_args()


def main() -> int:
    """Measure and report."""
    given = parsed()
    if given.data_dir is not None:
        given.data_dir = given.data_dir.resolve()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        one_round(0, given)  # compiles bytecode, and has the disk's cache filled
        measured = repeated(lambda number: one_round(number, given), given.rounds, given.seconds)
    except UserError as error:
        return mistaken("startup", error)
    how = (
        f"Fresh processes, {len(measured)} rounds of one of each; train.py until its first step is "
        "done, with the 13-layer network at width 0.125. Seconds since the process was started, "
        "and those of the processor. Differences are within a round."
    )
    goals = []
    for name in (name for name in (DIGITS, WANDB, CIFAR) if f"{name}: seconds" in measured):
        beyond = beyond_torch(measured, name)
        text = f"{cell(beyond)} s of the processor more"
        goals.append(Goal(name, TORCH, text, f"at most {GOAL:g}", bool(beyond.max() <= GOAL)))
    tables = {"To the first step, in seconds:": rows(measured)}
    report("startup", given.output, CPU, how, goals, tables, {"starts": measured})
    return 0


if __name__ == "__main__":
    sys.exit(main())
