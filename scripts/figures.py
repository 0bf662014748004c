"""Draw figures: `python scripts/figures.py fig2 preset=mini --train`; without names, all there are.

fig1 to fig3 are of a run that has kept snapshots, the paper's unless overrides of train.py say
another; --train trains what is missing of it. fig4 and fig6 follow from settings; the others are of
the records of the tables, and overrides narrow these as for train.py -m.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from phaseavg.cli import INTERRUPTED, USER_ERROR, script
from phaseavg.errors import UserError
from phaseavg.report.cells import read_paper
from phaseavg.report.figures.drawing import Drawing, place_of, write
from phaseavg.report.figures.of_records import OF_RECORDS, OF_SETTINGS
from phaseavg.report.figures.of_runs import OF_A_RUN
from phaseavg.report.figures.trajectories import read_trajectory
from phaseavg.report.study import read_study

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

Found = Iterator[Drawing | UserError | int]
"""Figures; in their place what is wrong; before them the status of training that has failed."""


def of_settings(names: Sequence[str], overrides: Sequence[str]) -> Found:
    """Yield the figures that follow from settings."""
    for name in names:
        try:
            yield from OF_SETTINGS[name].draw(overrides, CONF)
        except UserError as error:
            yield error


def of_runs(names: Sequence[str], overrides: Sequence[str], output: Path, train: bool) -> Found:
    """Yield the figures of a run, which is trained before if it is to be and is missing."""
    for name in names:
        draw, own = OF_A_RUN[name]
        try:
            run = read_trajectory(overrides, own, CONF)
            if train:
                command = [sys.executable, str(ROOT / "train.py"), *run.overrides]
                if status := status_of(command):
                    yield status
            yield draw(run, output)
        except UserError as error:
            yield error


def status_of(command: Sequence[str]) -> int:
    """Return the exit status of a command, as a shell has it.

    Raises:
        KeyboardInterrupt: after it has saved and left, if that came.
    """
    process, interrupted = subprocess.Popen(command), False  # noqa: S603
    while process.returncode is None:
        try:
            process.wait()
        except KeyboardInterrupt:  # the command has had it, too
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def of_records(names: Sequence[str], overrides: Sequence[str]) -> Found:
    """Yield the figures of records."""
    if not names:
        return
    tables = dict.fromkeys(table for name in names for table in OF_RECORDS[name].tables)
    paper = read_paper(ROOT / "results/paper.csv")
    study = read_study([f"table={','.join(tables)}", *overrides], CONF, paper)
    for name in names:
        try:
            yield from OF_RECORDS[name].draw(study)
        except UserError as error:
            yield error


@script
def main() -> int:
    """Write the figures, name their files, and say what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="NAME|OVERRIDE", help="figures; overrides")
    parser.add_argument("--output", type=Path, help="folder; results/figures, or a preset's below")
    parser.add_argument("--train", action="store_true", help="train what is missing of a run")
    arguments = parser.parse_args()
    overrides = [word for word in arguments.what if "=" in word]
    every = sorted([*OF_A_RUN, *OF_SETTINGS, *OF_RECORDS])
    names = [word for word in arguments.what if "=" not in word] or every
    statuses = {0}
    try:
        output = arguments.output or "results" / place_of(overrides)
        for name in names:
            if name not in every:
                raise UserError(f"{name}: there is no such figure; choices: {', '.join(every)}")
        drawn = [
            of_settings([n for n in names if n in OF_SETTINGS], overrides),
            of_runs([n for n in names if n in OF_A_RUN], overrides, output, arguments.train),
            of_records([n for n in names if n in OF_RECORDS], overrides),
        ]
        for found in (one for some in drawn for one in some):
            if isinstance(found, int):
                statuses.add(found)
            elif isinstance(found, UserError):
                print(f"figures.py: {found}", file=sys.stderr)
                statuses.add(USER_ERROR)
            else:
                for path in write(found, output):
                    print(path)
                if found.missing:
                    print(f"{found.name}: missing: {found.missing}", flush=True)
    except KeyboardInterrupt:
        print("figures.py: interrupted; rerun the same command to resume", file=sys.stderr)
        return INTERRUPTED
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
