"""Compare runs: `python scripts/compare.py RUN RUN …`.

A RUN is the folder of a run or a record, finished or not, or a cell of a table with all its seeds:
TABLE/COLUMN, TABLE/MODEL/COLUMN or TABLE/DATASET/MODEL/COLUMN, such as t1a/learnt. Overrides hold
for the cells, as in scripts/tables.py: `preset=mini-cifar100 t1b/80-40-40-sgd t1a/learnt`. Prints
what the configs differ in and the errors, and draws the curves. Trains nothing.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from phaseavg.cli import script
from phaseavg.errors import UserError
from phaseavg.report.compare import (
    at_phase_ends,
    differing,
    figure,
    listed,
    summarised,
)
from phaseavg.report.figures.drawing import FORMATS, rendered
from phaseavg.report.members import read_members
from phaseavg.runs.files import write_atomically

CONF = Path(__file__).parents[1] / "conf"


def as_text(head: str, frame: pd.DataFrame) -> str:
    """Return a table below its heading; of one without lines the heading alone."""
    if frame.empty:
        return f"{head}: none\n"
    table = tabulate(frame, "keys", tablefmt="github", showindex=False, disable_numparse=True)
    return f"{head}:\n\n{table}\n"


@script
def main() -> int:
    """Print the tables and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder, cell or override")
    parser.add_argument("--output", type=Path, default=Path("compare.png"), help=", ".join(FORMATS))
    arguments = parser.parse_args()
    output: Path = arguments.output
    kind = output.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"--output={output}: must end in one of .{', .'.join(FORMATS)}")
    members = read_members(arguments.runs, CONF)
    texts = [
        as_text("runs", listed(members)),
        as_text("settings that differ", differing(members)),
        as_text(
            "test error (%), mean ± sample deviation over n runs; the difference by seed, of "
            "finished runs (how many)",
            summarised(members),
        ),
        as_text("test error (%) at the ends of phases", at_phase_ends(members)),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    picture = rendered(figure(members), "compare", kind)
    write_atomically(output, picture, f"--output={output}")
    print("\n".join([*texts, str(output)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
