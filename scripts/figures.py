"""Draw figures: `python scripts/figures.py fig2 scale=digits --train`; default: all figures.

fig1 to fig3 show a run that saved its trajectory: the paper's run unless overrides of train.py
change it. --train trains or resumes this run. fig4 and fig6 show the paper's settings, and ignore
overrides. The other figures show the records of tables; overrides select cells as for train.py -m.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from phaseavg.cli import USER_ERROR, one_line_errors
from phaseavg.errors import UserError
from phaseavg.report.figures import FIGURES, Inputs, SettingsFigure, write

ROOT = Path(__file__).parents[1]


def train(overrides: Sequence[str]) -> None:
    """Train or resume a run.

    Raises:
        UserError: if train.py exits with a status other than 0.
    """
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *overrides])  # noqa: S603
    try:
        status = process.wait()
    except KeyboardInterrupt:  # train.py receives the signal, too, and saves its state
        process.wait()
        raise
    if status:
        raise UserError(f"train.py exited with status {status}; see its message above")


@one_line_errors
def main() -> int:
    """Write the figures and print their paths; continue after a figure that cannot be drawn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="NAME|OVERRIDE", help=", ".join(FIGURES))
    parser.add_argument("--output", type=Path, help="folder; default results/figures[/STUDY]")
    parser.add_argument("--train", action="store_true", help="train or resume the run first")
    args = parser.parse_intermixed_args()
    overrides = [word for word in args.what if "=" in word]
    # Overrides do not change the figures of settings, which a study of its own need not repeat.
    every = [n for n, f in FIGURES.items() if not (overrides and isinstance(f, SettingsFigure))]
    names = [word for word in args.what if "=" not in word] or every
    if unknown := [name for name in names if name not in FIGURES]:
        raise UserError(f"{unknown[0]}: is not a figure; choices: {', '.join(FIGURES)}")
    trainer = train if args.train else None
    inputs = Inputs(overrides, args.output, trainer)
    status = 0
    for name in names:
        try:
            for full_name, drawn in FIGURES[name].drawings(name, inputs):
                print("\n".join(map(str, write(full_name, drawn, inputs.folder))), flush=True)
        except UserError as error:
            print(f"figures.py: {error}", file=sys.stderr, flush=True)
            status = USER_ERROR
    return status


if __name__ == "__main__":
    sys.exit(main())
