"""Compare runs: `python scripts/compare.py RUNS … [OVERRIDE …]`.

RUNS is a folder of runs or records, or that of a single run. Runs that differ in their seed alone
form a group. Overrides of `train.py -m` choose cells of tables instead, such as `table=t1b
model=cnn13 column=80-40-40-sgd,80-40-40-ours`. Prints what the configs differ in and the errors,
and writes them beside a picture of the curves. Trains nothing.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.report.compare import (
    at_phase_ends,
    differing,
    figure,
    listed,
    read_groups,
    summarised,
)
from phaseavg.report.figures.style import rendered
from phaseavg.runs.files import write_atomically

ROOT = Path(__file__).parents[1]


@script
def main() -> int:
    """Print the tables; write them as Markdown, and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS|OVERRIDE", help="folders, or cells")
    parser.add_argument("--output", type=Path, default=Path("compare"), help="files without ending")
    arguments = parser.parse_args()
    output: Path = arguments.output
    runs, metrics = read_groups(arguments.runs, ROOT / "conf", ROOT / "results/paper.csv")
    tables = {
        "Runs": listed(runs),
        "Settings that differ": differing(runs),
        "Test error (%), mean ± sample deviation over n seeds": summarised(runs),
        "Test error (%) at phase ends": at_phase_ends(metrics),
    }
    parts = [
        f"{head}:\n\n{frame.to_markdown(index=False, disable_numparse=True)}\n"
        for head, frame in tables.items()
        if not frame.empty
    ]
    text = "\n".join(parts)
    output.parent.mkdir(parents=True, exist_ok=True)
    files = {"md": text.encode()}
    files |= rendered(figure(runs, metrics), "compare")
    for kind, content in files.items():
        write_atomically(Path(f"{output}.{kind}"), content, f"--output={output}")
    print("\n".join([text, *(f"{output}.{kind}" for kind in files)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
