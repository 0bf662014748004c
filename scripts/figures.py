"""Draw figures: `python scripts/figures.py fig2 preset=mini --train`; without names, all of them.

fig1 to fig3 are of a run that has saved its trajectory, the paper's unless overrides of train.py
say otherwise; --train trains what is missing of it. fig4 and fig6 follow from settings; the others
are of the records of the tables, and overrides narrow these as for train.py -m.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from phaseavg.cli import USER_ERROR, script
from phaseavg.errors import UserError
from phaseavg.report.figures import FIGURES, Asked, write
from phaseavg.sweep.cells import key_of, parsed, values_of

ROOT = Path(__file__).parents[1]


def train(overrides: Sequence[str]) -> None:
    """Train a run, or what is missing of it.

    Raises:
        UserError: if that ends with another status than 0.
    """
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *overrides])  # noqa: S603
    try:
        status = process.wait()
    except KeyboardInterrupt:  # train.py has had it, too, and saves its state
        process.wait()
        raise
    if status:
        raise UserError(f"train.py ended with status {status}; see above")


@script
def main() -> int:
    """Write the figures and name their files; one that cannot be drawn stops no other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="NAME|OVERRIDE", help=", ".join(FIGURES))
    parser.add_argument("--output", type=Path, help="folder; results/figures, or a preset's in it")
    parser.add_argument("--train", action="store_true", help="train what is missing of a run")
    given = parser.parse_args()
    overrides = [word for word in given.what if "=" in word]
    names = [word for word in given.what if "=" not in word] or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        raise UserError(f"{unknown[0]}: is no figure; choices: {', '.join(FIGURES)}")
    presets = [values_of(o)[0] for o in parsed(overrides) if key_of(o) == "preset"]
    output = given.output or Path("results/figures", *presets)
    trainer = train if given.train else None
    asked = Asked(overrides, output, ROOT / "conf", ROOT / "results/paper.csv", trainer)
    status = 0
    for name in names:
        try:
            for full_name, drawn in FIGURES[name].drawings(name, asked):
                print("\n".join(map(str, write(full_name, drawn, output))), flush=True)
        except UserError as error:
            print(f"figures.py: {error}", file=sys.stderr, flush=True)
            status = USER_ERROR
    return status


if __name__ == "__main__":
    sys.exit(main())
