"""Save a W&B workspace of tables: `python scripts/wandb_dashboard.py table=t1a,t1b model=cnn13`.

Accepts the same overrides as a sweep with `train.py -m`. The workspace shows the runs of that
sweep: a section per table with curves and errors by cell, and our errors next to the paper's.
"""

import argparse
import json
import sys
from pathlib import Path

import wandb

from phaseavg.cli import one_line_errors
from phaseavg.errors import UserError
from phaseavg.report.dashboard import workspace
from phaseavg.report.study import read_study


@one_line_errors
def main() -> int:
    """Save the workspace and print its URL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="+", help="table=… and others, as for train.py -m")
    parser.add_argument("--config-dir", type=Path, help="folder with your own tables")
    parser.add_argument("--entity", help="W&B account or team; default: your account")
    parser.add_argument("--project", default="phaseavg", help="W&B project")
    parser.add_argument("--dry-run", action="store_true", help="print JSON, save nothing")
    args = parser.parse_intermixed_args()
    study = read_study(args.overrides, extra_conf=args.config_dir)
    if args.dry_run:
        spec = workspace(study, args.entity or "", args.project)._spec
        print(json.dumps(spec, indent=1, ensure_ascii=False))
        return 0
    try:
        entity = args.entity or wandb.Api().default_entity or ""
        print(workspace(study, entity, args.project).save().url)
    except (wandb.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"not saved: {reason} (--dry-run works without W&B)") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
