"""Keep records: `python scripts/records.py [FROM]`.

Imports the ended runs of a folder or an archive (tar, zip) into results/records, brings all records
there to the run ids of today, and derives results/runs.csv from them.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.report.records import write_runs
from phaseavg.runs.archive import import_records

ROOT = Path(__file__).parents[1]


@script
def main() -> int:
    """Say what was imported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="folder or archive with records")
    parser.add_argument("--records", type=Path, default=Path("results/records"), help="folder")
    parser.add_argument(
        "--allow",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module of your own that records may name, such as that of a network; repeatable",
    )
    arguments = parser.parse_args()
    done = import_records(arguments.source, arguments.records, ROOT / "conf", arguments.allow)
    derived = write_runs(arguments.records)
    print(
        f"{arguments.records}: {done.new} imported, {done.known} there already, {done.renamed} of "
        f"those kept brought to today's run ids; {done.unended} runs that have not ended left out"
    )
    print(derived)
    return 0


if __name__ == "__main__":
    sys.exit(main())
