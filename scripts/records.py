"""Keep records: `python scripts/records.py RUNS --records results/STUDY/records`.

Copies config.yaml, metrics.jsonl and result.json of each ended run in RUNS, and derives runs.csv
beside the folder of records. Damaged records are reported and left out. Nothing is copied if a run
was kept before with other content.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.runs.records import keep_records, write_runs


@script
def main() -> int:
    """Copy the records and say how many."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="?", help="folder of runs; none: runs.csv alone")
    parser.add_argument("--records", type=Path, default=Path("results/full/records"), help="folder")
    arguments = parser.parse_args()
    if arguments.runs:
        new, known = keep_records(arguments.runs, arguments.records)
        print(f"{arguments.records}: {new} new records, {known} kept before")
    print(write_runs(arguments.records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
