"""Write the page of all results: `python scripts/report.py --runs runs/demo`.

It is results/index.html, which opens from disk. Trains and computes nothing.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.report.page import write_page


@script
def main() -> int:
    """Write the page and name it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of more runs")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the page")
    arguments = parser.parse_args()
    for path in write_page(arguments.results, arguments.runs):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
