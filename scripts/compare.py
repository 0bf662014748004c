"""Compare runs: `python scripts/compare.py RUNS … [OVERRIDE …]`.

RUNS is a folder of runs, a folder of records or a single run folder. Runs that differ only in
their seed form a group. Overrides of `train.py -m` select table cells instead, such as `table=t1b
model=cnn13 column=80-40-40-sgd,80-40-40-ours`. Prints the differing settings and the test errors;
also writes them as Markdown with a figure of the curves. Trains nothing.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import one_line_errors
from phaseavg.report.compare import comparison_text, figure, read_groups
from phaseavg.report.figures.style import render
from phaseavg.runs.files import write_atomically


@one_line_errors
def main() -> int:
    """Print the tables; write them as Markdown, and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS|OVERRIDE", help="folders or table cells")
    parser.add_argument("--output", type=Path, default=Path("compare"), help="path without suffix")
    args = parser.parse_intermixed_args()
    runs, metrics = read_groups(args.runs)
    text = comparison_text(runs, metrics)
    files = {"md": text.encode(), **render(figure(runs, metrics), "compare")}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in files.items():
        write_atomically(Path(f"{args.output}.{suffix}"), content, f"--output={args.output}")
    print("\n".join([text, *(f"{args.output}.{suffix}" for suffix in files)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
