"""Draw learning-rate schedules: `schedule.py schedule=80-40-40 schedule=decayed schedule=cosine`.

Each argument is a curve: overrides as of train.py, several of them in quotes, such as
`"schedule=cosine schedule.shape.per=step"` or `"schedule=80-40-40 optimizer=adam"`.
"""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.errors import UserError
from phaseavg.report.figures.schedules import figure, schedules

CONF = Path(__file__).parents[1] / "conf"


@script
def main() -> int:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("curves", nargs="+", metavar="OVERRIDES", help="a curve, as of train.py")
    parser.add_argument("--output", type=Path, default=Path("schedule.png"), help="png, svg, pdf")
    parser.add_argument("--steps", type=int, default=391, help="steps of an epoch (CIFAR's 391)")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        raise UserError(f"--steps={arguments.steps}: must be positive")
    found = schedules(arguments.curves, arguments.steps, CONF)
    found["curve"] = found["curve"].str.replace("schedule=", "", regex=False)
    try:
        figure(found).savefig(arguments.output, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--output={arguments.output}: {error}") from error
    print(f"{arguments.output}: {len(arguments.curves)} curves")
    return 0


if __name__ == "__main__":
    sys.exit(main())
