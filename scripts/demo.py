"""Write the demo's table and figure from its runs: `python scripts/demo.py RUNS [OUTPUT]`."""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.report.demo import write_demo


@script
def main() -> int:
    """Print the table, and where all was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the demo's runs")
    parser.add_argument("output", type=Path, nargs="?", help="folder; by default that of the runs")
    arguments = parser.parse_args()
    output = arguments.output or arguments.runs
    output.mkdir(parents=True, exist_ok=True)
    print(f"\n{write_demo(arguments.runs, output)}")
    print(f"Table: {output / 'table.md'}\nPicture: {output / 'errors.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
