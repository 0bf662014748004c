"""Write W&B runs as the tables that records give: runs.csv and metrics.csv.

python scripts/wandb_export.py runs/wandb                        offline, from W&B's folders
python scripts/wandb_export.py --entity me --project phaseavg    online
"""

import argparse
import sys
from pathlib import Path

import wandb

from phaseavg.cli import script
from phaseavg.errors import UserError
from phaseavg.report.mirrors import frames, offline, online, write_frames


@script
def main() -> int:
    """Return 0, 1 if W&B does not answer or lets nobody in, or 2 for a mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="with W&B runs, at any depth")
    parser.add_argument("--project", help="W&B's, instead of folders")
    parser.add_argument("--entity", help="account or team; by default your own")
    parser.add_argument("--output", type=Path, default=Path("results/wandb"), help="folder")
    given = parser.parse_args()
    try:
        if bool(given.folders) == bool(given.project):
            raise UserError("name folders with W&B runs, or --project; one of the two")
        if given.entity and not given.project:
            raise UserError(f"--entity={given.entity}: is of a --project; add one")
        if given.project:
            path = "/".join(filter(None, (given.entity, given.project)))
            mirrors = list(online(wandb.Api(), path))
        else:
            mirrors = offline(given.folders)
        runs, metrics, left_out = frames(mirrors)
        written = write_frames(runs, metrics, given.output)
    except (UserError, OSError) as error:
        print(f"wandb_export.py: {error}", file=sys.stderr)
        return 2
    except (wandb.Error, ValueError) as error:  # ValueError: there is no such project
        reason = " ".join(str(error).split())
        print(f"wandb_export.py: --project={given.project}: {reason}", file=sys.stderr)
        return 1
    for where, reason in left_out.items():
        print(f"wandb_export.py: {where}: left out, {reason}", file=sys.stderr)
    for path in written:
        print(path)
    print(f"{len(runs)} runs, {len(left_out)} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
