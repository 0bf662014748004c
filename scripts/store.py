"""List what runs have left for others to go on from, and remove what nobody needs any more.

python scripts/store.py runs/shared
python scripts/store.py runs/shared --clean        what no run needs that a sweep has asked for
python scripts/store.py runs/shared --clean-all    everything
"""

import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from phaseavg.cli import script
from phaseavg.errors import UserError
from phaseavg.runs.store import GIGABYTE, Store


def listed(store: Store) -> str:
    """Return in words and a table what there is, how large it is and what needs it."""
    rows = []
    by_epoch = sorted(store.branches(), key=lambda b: (b.name.rpartition("epoch")[0], b.epoch))
    for branch in by_epoch:
        files = [store.snapshots / name for name in branch.files]
        snapshots = sum(file.stat().st_size for file in files if file.exists())
        needing = store.needed_by(branch.key)
        rows.append(
            [
                branch.name,
                len(branch.averages),
                f"{branch.size / 1e6:,.1f}",
                f"{snapshots / 1e6:,.1f}" if snapshots else "",
                needing[0] if len(needing) == 1 else f"{len(needing)} runs" if needing else "",
            ]
        )
    head = ["state after", "averages", "MB", "MB in snapshots", "needed by"]
    text = tabulate(rows, head, tablefmt="github", disable_numparse=True) if rows else "no states"
    training = [
        f"in training: {home.name}, saved after step {int(saved[-1].name.split('-')[1])}"
        for home, _ in store.in_training()
        if (saved := sorted(home.glob("checkpoint-*.pt")))
    ]
    used = f"{store.folder}: {store.used() / GIGABYTE:.3g} GB; the disk has room for "
    return "\n".join([text, *training, f"{used}{max(store.free(), 0) / GIGABYTE:.3g} GB more"])


@script
def main() -> int:
    """Return 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the store: share.dir")
    clean = parser.add_mutually_exclusive_group()
    clean.add_argument("--clean", action="store_true", help="remove what no run needs any more")
    clean.add_argument("--clean-all", action="store_true", help="remove all that is there")
    given = parser.parse_args()
    store = Store(given.folder)
    if not given.folder.is_dir():
        print(f"{given.folder}: there is no such folder; nothing has been shared")
        return 0
    try:
        if given.clean or given.clean_all:
            before = store.used()
            if given.clean_all:
                store.forget()
            gone = store.clean()
            freed = (before - store.used()) / GIGABYTE
            print(f"{len(gone)} states removed, {freed:.3g} GB")
        print(listed(store))
    except UserError as error:
        print(f"store.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
