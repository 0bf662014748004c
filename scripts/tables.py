"""Write tables from records: `python scripts/tables.py table=t1a`.

Accepts the same overrides as a sweep with `train.py -m`, and writes whole tables, also if the
overrides select cells. Writes each table as Markdown, CSV, LaTeX and HTML to results/STUDY/tables;
--claims also writes the verdicts on the paper's claims to results/STUDY. STUDY is the scale, such
as full. Trains nothing.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import one_line_errors
from phaseavg.errors import UserError
from phaseavg.report.claims_page import write_claims
from phaseavg.report.study import read_study
from phaseavg.report.tables import write_tables
from phaseavg.sweep.cells import study_name


@one_line_errors
def main() -> int:
    """Write the files and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="+", help="table=… and others, as for train.py -m")
    parser.add_argument("--config-dir", type=Path, help="folder with your own tables")
    parser.add_argument("--output", type=Path, help="folder; default results/STUDY")
    parser.add_argument("--claims", action="store_true", help="verdicts, too; needs table=all")
    args = parser.parse_intermixed_args()
    study = read_study(args.overrides, all_cells=True, extra_conf=args.config_dir)
    for table in study.paper.index.unique("table") if args.claims else ():
        if table not in study.request.tables:
            raise UserError(f"--claims: needs table=all; table={table} is missing")
    study.require_output(args.output)
    output = args.output or Path("results", study_name(args.overrides))
    paths = write_tables(study, output / "tables")
    if args.claims:
        paths += write_claims(study, output / "claims.md")
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
