"""Average saved weights: `python scripts/average.py WEIGHTS … --average tail=0.25`.

WEIGHTS are files (safetensors, state dicts of torch) or Hugging Face folders, oldest first, or a
folder of them, in natural order (2 before 10). Each average is written with its coefficients as
metadata. BatchNorm statistics are those of the last file: recompute them before use
(recompute_batchnorm).

If WEIGHTS is a run folder of this project (save_trajectory=epochs), a phase is averaged, the
BatchNorm statistics are recomputed, and each average is tested; --figure draws the errors.

Averages of T files: exponential=γ0 (the decay per file is γ0^(80/T)), half_life=FRACTION and
tail=FRACTION (of the T files), last=FILES, uniform, power=γ, blend=AMOUNT (of exponential=0.9),
from_decay=linear|cosine|1-sqrt, rna=ρ, bema. For rna and bema, the first file has the weights at
the start of the window. If the files are power-function averages themselves (post-hoc EMA of Karras
et al., 2024), `--stored t:γ …` names time and γ of each, and power=γ is reconstructed from them.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from phaseavg.cli import one_line_errors
from phaseavg.errors import UserError
from phaseavg.report.figures import write
from phaseavg.report.figures.averages import draw
from phaseavg.runs.record import METRICS
from phaseavg.training import posthoc
from phaseavg.training.evaluation import load_run
from phaseavg.training.weight_files import find_weights, open_weights

DEFAULTS = ["last", "exponential=0.9", "uniform", "tail=0.25", "blend=0.5"]


@one_line_errors
def main() -> int:
    """Write the averages; for a run, print their errors and draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", nargs="+", type=Path, help="files, folders, or a run folder")
    parser.add_argument(
        "--average",
        action="append",
        metavar="NAME=VALUE",
        help=f"repeatable; default: {', '.join(DEFAULTS)}",
    )
    parser.add_argument("--stored", nargs="+", metavar="T:GAMMA", help="the files are averages")
    parser.add_argument("--output", type=Path, default=Path("averages"), help="folder")
    parser.add_argument("--figure", action="store_true", help="for a run: write averages.svg, too")
    parser.add_argument("--phase", type=int, help="for a run: the phase; default: the last")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="for a run")
    parser.add_argument("--device", default="auto", help="for a run: as execution.device")
    parser.add_argument(
        "--allow", metavar="MODULE", action="append", default=[], help="for a run: as evaluate.py's"
    )
    args = parser.parse_args()
    averages = list(dict.fromkeys(args.average or DEFAULTS))
    folder, run, phase, start = args.weights[0], None, None, None
    if (folder / METRICS).is_file():
        if args.weights[1:] or args.stored:
            raise UserError(f"{folder}: give one run folder alone, without --stored")
        run = load_run(folder, args.data_dir, args.device, args.allow)
        phase, paths = posthoc.phase_files(folder, run[0], run[1], args.phase)
        start = len(paths) > phase.epochs
    elif args.figure or args.phase is not None:
        raise UserError(f"{folder}: --figure and --phase need a run folder")
    else:
        paths = find_weights(args.weights)
    inputs = {path.parent.resolve() for path in paths} | {path.resolve().parent for path in paths}
    if args.output.resolve() in inputs:
        raise UserError(f"--output={args.output}: contains the weights; choose another folder")
    files = [open_weights(path) for path in paths]
    if args.stored is None:
        alphas = [posthoc.coefficients_of(average, files, start) for average in averages]
    elif len(args.stored) == len(files):
        alphas = [posthoc.reconstructed(average, args.stored) for average in averages]
    else:
        raise UserError(f"--stored: {len(args.stored)} values for {len(files)} files")
    states, rows = posthoc.average_files(files, alphas), []
    print(f"{len(paths)} files: {paths[0].name} … {paths[-1].name}", flush=True)
    for average, alpha, state in zip(averages, alphas, states, strict=True):
        # Files that are averages themselves have no age in files.
        age = {} if args.stored else {"mean_age": posthoc.mean_age(alpha)}
        rows.append({"average": average, **age})
        if run is not None and phase is not None:
            settings, data, model = run
            test = posthoc.evaluate_average(state, model, settings, data, phase.end)
            rows[-1] |= {"test_error": test.error, "test_loss": test.loss}
            # The statistics with which it was tested; before, they were those of the last file.
            state |= {name: buffer for name, buffer in model.named_buffers() if name in state}
        path = args.output / f"{average.replace('=', '-')}.safetensors"
        metadata = {"average": average, "coefficients": alpha, "files": [p.name for p in paths]}
        posthoc.write_average(path, state, metadata)
        print(path, flush=True)
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False, floatfmt=".4g"))
    if args.figure:
        print(*write("averages", (draw(table), table), args.output), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
