"""Write tables from records: `python scripts/tables.py table=t1a model=cnn13`.

Takes the overrides that `train.py -m` takes for a sweep, and trains nothing. Writes each table as
Markdown, CSV, LaTeX and HTML, and with --claims the verdicts on the paper's claims.
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
    """Write the files and name them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="+", help="table=…, and others as for train.py -m")
    parser.add_argument("--config-dir", type=Path, help="with tables of your own")
    parser.add_argument("--output", type=Path, default=Path("results/full/tables"), help="folder")
    parser.add_argument("--whole", action="store_true", help="all cells, also those not chosen")
    parser.add_argument("--claims", type=Path, help="file for the verdicts, from all tables")
    given = parser.parse_args()
    paper = read_paper(ROOT / "results/paper.csv")
    study = read_study(given.overrides, ROOT / "conf", paper, given.whole, given.config_dir)
    written = write_tables(study, given.output)
    if given.claims:
        written += write_claims(study, paper, given.claims)
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
