"""Make a W&B workspace with tables: `python scripts/wandb_dashboard.py table=t1a,t1b model=cnn13`.

Takes the overrides that `train.py -m` takes for a sweep, and shows the runs that it would make: a
section per table, with curves and errors by cell, and ours beside the paper's.
"""

import argparse
import json
import sys
from pathlib import Path

import wandb

from phaseavg.cli import script
from phaseavg.errors import UserError
from phaseavg.report.cells import read_paper
from phaseavg.report.dashboard import workspace
from phaseavg.report.study import read_study

ROOT = Path(__file__).parents[1]


@script
def main() -> int:
    """Save the workspace and print its address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="+", help="table=…, and others as for train.py -m")
    parser.add_argument("--config-dir", type=Path, help="with tables of your own")
    parser.add_argument("--entity", help="W&B's account or team; by default your own")
    parser.add_argument("--project", default="phaseavg", help="W&B's")
    parser.add_argument("--dry-run", action="store_true", help="print it as JSON, and save nothing")
    given = parser.parse_args()
    paper = read_paper(ROOT / "results/paper.csv")
    study = read_study(given.overrides, ROOT / "conf", paper, more=given.config_dir)
    if given.dry_run:
        made = workspace(study, given.entity or "", given.project)
        print(json.dumps(made._spec, indent=1, ensure_ascii=False))
        return 0
    try:
        entity = given.entity or wandb.Api().default_entity or ""
        print(workspace(study, entity, given.project).save().url)
    except (wandb.Error, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"not saved: {reason} (--dry-run does without W&B)") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
