"""Send offline W&B runs to W&B, each once: `python scripts/wandb_sync.py runs/mini`.

What has been sent and what is in training is left out; `wandb login` has to come first.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.runs.upload import upload


@script
def main() -> int:
    """Return 0, 1 if a run could not be sent, or 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="with runs; by default runs")
    parser.add_argument(
        "--patience", type=float, default=120, help="seconds to wait for the next run to be sent"
    )
    given = parser.parse_args()
    folder = given.folder or Path("runs")
    if not given.folder and not folder.exists():
        print(f"{folder}: there is no offline run")
        return 0
    done = upload(folder, given.patience)
    print(f"{folder}: {done}", file=sys.stderr if done.failed else sys.stdout)
    return 1 if done.failed else 0


if __name__ == "__main__":
    sys.exit(main())
