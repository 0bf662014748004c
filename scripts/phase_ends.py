"""Errors at the ends of phases, by settings: `python scripts/phase_ends.py RUNS SETTING …`.

For example `python scripts/phase_ends.py runs averaging averaging.weights.gamma0`. Runs that agree
in the settings named are repetitions of each other: mean ± sample deviation over their seeds.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.report.phase_ends import phase_ends, read_repetitions
from phaseavg.runs.files import write_atomically


@script
def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("settings", nargs="+", help="names as in an override of train.py")
    parser.add_argument("--output", type=Path, help="file for the table, instead of the terminal")
    arguments = parser.parse_args()
    runs, metrics = read_repetitions(arguments.runs, arguments.settings)
    table = phase_ends(metrics, arguments.settings)
    lines = ["Test error (%), mean ± sample deviation over n seeds:", ""]
    lines.append(table.to_markdown(index=False))
    diverged = runs.loc[runs["status"] == "diverged", "run_id"]
    lines += [f"not in it, for it diverged: {run_id}" for run_id in diverged]
    text = "\n".join(lines)
    if arguments.output:
        write_atomically(arguments.output, f"{text}\n".encode(), f"--output={arguments.output}")
    print(arguments.output or text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
