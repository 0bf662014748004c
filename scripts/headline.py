"""Table 1 of a network as a list: `python scripts/headline.py preset=mini-cifar100 model=cnn13`.

Each method beside SGD of the same length, with the paper's numbers, and what the runs have cost.
Trains nothing. With --readme the list goes into that file, between its marks.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.errors import UserError
from phaseavg.report.cells import read_paper
from phaseavg.report.headline import cost, headline
from phaseavg.report.marks import between_marks
from phaseavg.report.study import read_study
from phaseavg.runs.files import write_atomically

ROOT = Path(__file__).parents[1]


@script
def main() -> int:
    """Print the list, or put it where it belongs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="+", help="preset=…, model=…, as for train.py -m")
    parser.add_argument("--readme", type=Path, help="file with marks for the list")
    arguments = parser.parse_args()
    paper = read_paper(ROOT / "results/paper.csv")
    overrides = ["table=t1a,t1b,t1c,t1d", *arguments.overrides]
    study = read_study(overrides, ROOT / "conf", paper)
    model, *others = dict.fromkeys(cell.model for cell in study.request.cells)
    if others:
        raise UserError(f"model: name one; choices: {', '.join([model, *others])}")
    runs = len(study.records)
    epochs, seconds = cost(study.records)
    made_with = " and ".join(sorted(study.rows["execution"].unique()))
    text = headline(study.rows, model, paper) + (
        f"\n\n{runs} runs, for which {epochs:,} epochs were trained"
        + (f" in {seconds / 3600:.1f} hours, one after the other ({made_with})." if runs else ".")
    )
    if arguments.readme:
        found = between_marks(arguments.readme.read_text(), "results", text)
        write_atomically(arguments.readme, found.encode(), f"--readme={arguments.readme}")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
