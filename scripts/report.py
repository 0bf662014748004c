"""Write the results page: `python scripts/report.py --runs runs/demo`.

The page is results/index.html and opens from disk. Trains and computes nothing.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import one_line_errors
from phaseavg.report.page import write_page


@one_line_errors
def main() -> int:
    """Write the page and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="further runs folders")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder")
    args = parser.parse_args()
    for path in write_page(args.results, args.runs):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
