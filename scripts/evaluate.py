"""Test the final weights of a run that kept them (save_weights=true): `evaluate.py RUN`."""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import script
from phaseavg.training.evaluation import evaluate_run


@script
def main() -> int:
    """Print loss and error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="folder of the data")
    parser.add_argument("--device", default="auto", help="as execution.device of train.py")
    parser.add_argument(
        "--allow",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module of your own that the record names, such as that of its network; repeatable",
    )
    given = parser.parse_args()
    found = evaluate_run(given.run, given.data_dir, given.device, given.allow)
    print(f"test loss {found.loss:.6f}  test error {found.error:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
