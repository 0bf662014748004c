"""What sharing saves: a miniature of Table 1 with and without it.

    python -m benchmarks.sharing

A round is one seed: the same cells three times in the same process, each way from nothing, in an
order that turns from round to round. `one by one` runs the tables one after the other, each cell
for itself; `equal runs merged` is one sweep of all tables with share=false, which trains a recipe
once that several cells have; `shared` is the same sweep as it is by default. All that a sweep does
is counted, from composing its configs to its last record. That the three end with the same errors
is checked.
"""

import contextlib
import io
import sys
import time
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from hydra.core.global_hydra import GlobalHydra

import train
from benchmarks.common import Goal, add_rounds, cell, mistaken, parser_of, repeated, report
from phaseavg.cli import command_line
from phaseavg.errors import UserError
from phaseavg.report.headline import cost
from phaseavg.runs.records import load_runs
from phaseavg.training.execution import pick_device

GOAL = 0.6
WAYS = ("one by one", "equal runs merged", "shared")


def sweeps_of(way: str, tables: list[str], folder: Path, common: list[str]) -> list[list[str]]:
    """Return the command lines of one way, with a folder for what each leaves."""
    if way == "one by one":
        return [
            [f"table={table}", *places(folder / table), "share=false", *common] for table in tables
        ]
    share = [] if way == "shared" else ["share=false"]
    return [[f"table={','.join(tables)}", *places(folder / "all"), *share, *common]]


def places(folder: Path) -> list[str]:
    """Return where runs are left and looked for: nowhere else."""
    return [f"runs_dir={folder}", f"records_dir={folder}"]


def swept(arguments: list[str]) -> None:
    """Run a sweep in this process.

    Raises:
        UserError: if it does not end well.
    """
    GlobalHydra.instance().clear()
    sys.argv = ["train.py", "-m", *arguments]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = command_line(train.main)
    if status:
        raise UserError(f"train.py -m {' '.join(arguments)}: ended with status {status}")


def trained(folder: Path) -> tuple[int, dict[str, float]]:
    """Return the epochs that the runs below a folder have taken, and their errors by run id."""
    runs, _ = load_runs(*folder.iterdir())
    return cost(runs)[0], dict(zip(runs["run_id"], runs["test_error"], strict=True))


def one_round(number: int, given: Namespace) -> dict[str, float]:
    """Return seconds, seconds of the processor and epochs of each way, with one seed."""
    found: dict[str, float] = {}
    outcomes = []
    common = ["preset=mini", f"model={given.model}", f"seed={number}", *given.overrides]
    for turn in range(len(WAYS)):
        way = WAYS[(turn + number) % len(WAYS)]
        print(f"seed {number}, {way} …", file=sys.stderr, flush=True)
        with TemporaryDirectory(prefix="phaseavg-") as folder:
            began, began_processor = time.perf_counter(), time.process_time()
            for arguments in sweeps_of(way, given.tables, Path(folder), common):
                swept(arguments)
            found[f"{way}: seconds"] = time.perf_counter() - began
            found[f"{way}: processor"] = time.process_time() - began_processor
            found[f"{way}: epochs"], errors = trained(Path(folder))
            outcomes.append(errors)
    if any(errors != outcomes[0] for errors in outcomes):
        raise UserError("the three ways ended with other errors: sharing is broken")
    return found


def rows(measured: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each way."""
    found = []
    for way in WAYS:
        row = {"": way, "epochs trained": f"{measured[f'{way}: epochs'].iloc[0]:g}"}
        row["seconds"] = cell(measured[f"{way}: seconds"])
        for other in WAYS[:2]:
            ratio = measured[f"{way}: processor"] / measured[f"{other}: processor"]
            row[f"times {other}"] = cell(ratio)
        found.append(row)
    return found


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = parser_of("sharing")
    add_rounds(parser, rounds=3, seconds=600, each="all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--tables", nargs="+", default=["t1a", "t1b", "t1c", "t1d"], help="swept")
    parser.add_argument("--model", default="cnn13_digits", help="of the miniature")
    parser.add_argument("--overrides", nargs="*", default=[], help="that hold for all runs")
    return parser.parse_args()


def main() -> int:
    """Measure and report."""
    given = parsed()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    typed = sys.argv
    try:
        device = pick_device(given.device, "--device")
        given.overrides += [f"execution.device={device}"]
        measured = repeated(lambda number: one_round(number, given), given.rounds, given.seconds)
    except UserError as error:
        return mistaken("sharing", error)
    finally:
        sys.argv = typed
    ratio = measured["shared: processor"] / measured["one by one: processor"]
    how = (
        f"Tables {', '.join(given.tables)} in miniature ({given.model} on the digits, every phase "
        f"a tenth as long), {len(measured)} seeds, a round each: the same cells in three ways that "
        "end with the same errors. Seconds are those of whole sweeps, all that is composed, "
        "tested, averaged and written included; ratios are within a round and of the processor's "
        "time. Medians over rounds, in parentheses the least and the most."
    )
    goal = Goal(
        f"tables {', '.join(given.tables)} in miniature, shared",
        "one by one",
        f"{cell(ratio)} times its time",
        f"at most {GOAL}",
        bool(ratio.max() <= GOAL),
    )
    tables = {"Whole sweeps:": rows(measured)}
    report("sharing", given.output, device, how, [goal], tables, {"sweeps": measured})
    return 0


if __name__ == "__main__":
    sys.exit(main())
