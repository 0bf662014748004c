"""Compare runs: `python scripts/compare.py RUNS … [OVERRIDE …]`.

RUNS is a folder of runs or records, or that of a single run. Runs that differ in their seed alone
form a group. Overrides of `train.py -m` choose cells of tables instead, such as `table=t1b
model=cnn13 column=80-40-40-sgd,80-40-40-ours`. Prints what the configs differ in and the errors,
and writes them beside a picture of the curves. Trains nothing.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.report.compare import as_text, figure, read_groups
from phaseavg.report.figures.style import rendered
from phaseavg.runs.files import write_atomically

ROOT = Path(__file__).parents[1]


@script
def main() -> int:
    """Print the tables; write them as Markdown, and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS|OVERRIDE", help="folders, or cells")
    parser.add_argument("--output", type=Path, default=Path("compare"), help="files without ending")
    given = parser.parse_args()
    runs, metrics = read_groups(given.runs, ROOT / "conf", ROOT / "results/paper.csv")
    text = as_text(runs, metrics)
    files = {"md": text.encode(), **rendered(figure(runs, metrics), "compare")}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    for kind, content in files.items():
        write_atomically(Path(f"{given.output}.{kind}"), content, f"--output={given.output}")
    print("\n".join([text, *(f"{given.output}.{kind}" for kind in files)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
