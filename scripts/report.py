"""Write the page of all results: `python scripts/report.py --runs runs/demo`.

It is results/index.html, which opens from disk, and what it loads, in results/page. Trains nothing.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.report.cells import read_paper
from phaseavg.report.page import write_page
from phaseavg.report.page_sections import SOURCES

ROOT = Path(__file__).parents[1]


@script
def main() -> int:
    """Write the page and name it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="folders of other runs that it is to show",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder with the figures; of the page"
    )
    arguments = parser.parse_args()
    paper = read_paper(ROOT / "results/paper.csv")
    written = write_page(arguments.results, SOURCES, arguments.runs, ROOT / "conf", paper)
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
