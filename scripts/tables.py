"""Write tables from records: `python scripts/tables.py table=t1a model=cnn13`.

Accepts the same overrides as a sweep with `train.py -m`. Writes each table as Markdown, CSV, LaTeX
and HTML; --claims also writes the verdicts on the paper's claims. Trains nothing.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.report.cells import read_paper
from phaseavg.report.claims_page import write_claims
from phaseavg.report.study import read_study
from phaseavg.report.tables import write_tables

ROOT = Path(__file__).parents[1]


@script
def main() -> int:
    """Write the files and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="+", help="table=… and others, as for train.py -m")
    parser.add_argument("--config-dir", type=Path, help="folder with your own tables")
    parser.add_argument("--output", type=Path, default=Path("results/full/tables"), help="folder")
    parser.add_argument("--all-cells", action="store_true", help="ignore the selection of cells")
    parser.add_argument("--claims", type=Path, help="file for the verdicts; needs all tables")
    args = parser.parse_args()
    paper = read_paper(ROOT / "results/paper.csv")
    study = read_study(args.overrides, ROOT / "conf", paper, args.all_cells, args.config_dir)
    paths = write_tables(study, args.output)
    if args.claims:
        paths += write_claims(study, paper, args.claims)
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
