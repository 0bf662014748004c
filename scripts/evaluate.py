"""Evaluate the final weights of a run that was trained with save_weights=true."""

import argparse
import sys
from pathlib import Path

from phaseavg.cli import one_line_errors
from phaseavg.training.evaluation import evaluate_run


@one_line_errors
def main() -> int:
    """Print the test loss and error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="data folder")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, …; as execution.device of train.py"
    )
    parser.add_argument(
        "--allow",
        metavar="MODULE",
        action="append",
        default=[],
        help="allow importing MODULE, such as that of your own network; repeatable",
    )
    args = parser.parse_args()
    metrics = evaluate_run(args.run, args.data_dir, args.device, args.allow)
    print(f"test loss {metrics.loss:.6f}  test error {metrics.error:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
