"""Copy records: `python scripts/records.py RUNS --records results/STUDY/records`.

Copies config.yaml, metrics.jsonl and result.json of each ended run in RUNS, and writes runs.csv
next to the records folder. Damaged records are reported and skipped. Nothing is copied if the
folder already contains a different record of the same run.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import one_line_errors
from phaseavg.runs.records import copy_records, write_runs


@one_line_errors
def main() -> int:
    """Copy the records and print their number."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="runs folder; default: only runs.csv")
    parser.add_argument("--records", type=Path, default=Path("results/full/records"), help="folder")
    args = parser.parse_args()
    if args.runs:
        new, existing = copy_records(args.runs, args.records)
        print(f"{args.records}: {new} new records, {existing} already there")
    print(write_runs(args.records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
