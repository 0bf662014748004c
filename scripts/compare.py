"""Compare runs at the ends of their phases: `python scripts/compare.py RUNS SETTING …`.

For example `python scripts/compare.py runs averaging averaging.weights.gamma0`. Runs that agree in
the settings named are repetitions of each other: mean ± sample deviation over their seeds.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.errors import UserError
from phaseavg.report.compare import compare
from phaseavg.report.records import read_runs


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("settings", nargs="+", help="names as in an override of train.py")
    arguments = parser.parse_args()
    try:
        runs = read_runs(arguments.runs)
        table = compare(runs, arguments.settings)
    except UserError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    print("Test error (%), mean ± sample deviation over n seeds:\n")
    print(table.to_markdown(index=False))
    for run_id in runs.loc[runs["status"] == "diverged", "run_id"]:
        print(f"not in it, for it diverged: {run_id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
