"""Keep records: `python scripts/records.py RUNS --records results/STUDY/records`.

Copies config.yaml, metrics.jsonl and result.json of each ended run in RUNS, and derives runs.csv
beside the folder of records. Damaged records are reported and left out. Nothing is copied if a run
was kept before with other content.
"""

import argparse
import shutil
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.errors import UserError
from phaseavg.runs.files import write_atomically
from phaseavg.runs.record import FILES, intact_records
from phaseavg.runs.records import load_runs


def keep_records(source: Path, records: Path) -> tuple[int, int]:
    """Copy the records of the ended runs in a folder; return how many, and how many were known.

    Args:
        source: folder of runs.
        records: folder of the study's records.

    Raises:
        UserError: if there is no ended run, a run was kept before with other content, or a file
            cannot be written.
    """
    if not (found := [record.folder for record in intact_records(source)]):
        raise UserError(f"{source}: holds no ended run; name a folder of runs")
    new = [folder for folder in found if not (records / folder.name).exists()]
    for folder in found:
        kept = records / folder.name
        if folder not in new and any(_bytes(folder / f) != _bytes(kept / f) for f in FILES):
            raise UserError(f"{folder}: differs from {kept}; move one away; nothing was copied")
    try:
        for folder in new:
            part = records / f".{folder.name}.part"  # so that no record is ever half there
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name in FILES:
                shutil.copyfile(folder / name, part / name)
            part.rename(records / folder.name)
    except OSError as error:
        raise UserError(f"--records={records}: cannot be written ({error.strerror})") from error
    return len(new), len(found) - len(new)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def write_runs(records: Path) -> Path:
    """Write runs.csv beside a folder of records, a line per run; return its path."""
    path = records.parent / "runs.csv"
    runs, _ = load_runs(records)
    text = runs.drop(columns=["path", "segments"], errors="ignore").to_csv(index=False)
    write_atomically(path, text.encode(), f"--records={records}")
    return path


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
