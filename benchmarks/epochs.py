"""How many epochs the paper's tables take: `python -m benchmarks.epochs`.

Nothing is trained: from the configs of the runs follows what they have in common. Counted is what
`train.py -m table=… plan=true` counts, before anything is finished.
"""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence

import pandas as pd
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from benchmarks.common import CONF, CPU, Goal, mistaken, parser_of, report
from phaseavg.cli import CONFIG_ERRORS, explained
from phaseavg.errors import UserError
from phaseavg.sweep.cells import read_request, runs_of
from phaseavg.sweep.plan import COUNTS, counted

DATASETS = {"cifar10", "cifar100", "svhn"}


def measure(tables: Sequence[str], overrides: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the epochs of each table, and of all together, on CIFAR and SVHN.

    Raises:
        UserError: if there is no such table, or no such override.
    """
    composed: dict[tuple[str, ...], DictConfig] = {}

    def composing(overrides: Sequence[str]) -> DictConfig:
        return compose("config", list(overrides))

    options = [path.stem for path in (CONF / "table").glob("*.yaml")]
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            request = read_request([f"table={','.join(tables)}", *overrides], options, composing)
            cells = [cell for cell in request.cells if cell.dataset in DATASETS]
            found = {}
            for name in tables:
                of_table = [cell for cell in cells if cell.table == name]
                runs = runs_of(of_table, request.seeds, composing, composed)
                found[f"table {name}"] = counted(runs)
            found["all together"] = counted(runs_of(cells, request.seeds, composing, composed))
    except CONFIG_ERRORS as error:
        raise UserError(explained(error)) from error
    return found


def parsed() -> Namespace:
    """Return the command line's options."""
    parser = parser_of("epochs")
    tables = ["t1a", "t1b", "t1c", "t1d", "t2", "t3", "t4"]
    parser.add_argument("--tables", nargs="+", default=tables, help="counted")
    parser.add_argument("--overrides", nargs="*", default=[], help="that narrow the tables")
    return parser.parse_args()


def main() -> int:
    """Count and report."""
    given = parsed()
    try:
        found = measure(given.tables, given.overrides)
    except UserError as error:
        return mistaken("epochs", error)
    rows = [
        {
            "": name,
            **{way: f"{epochs[way]:,}" for way in COUNTS},
            "shared of asked for": share(epochs),
        }
        for name, epochs in found.items()
    ]
    narrowed = f", with {' '.join(given.overrides)}" if given.overrides else ""
    how = (
        f"Tables {', '.join(given.tables)} on CIFAR-10, CIFAR-100 and SVHN{narrowed}, with the "
        "tables' seeds. Nothing is trained: the counts follow from the configs alone, and are the "
        "same everywhere. Equal runs are run once; what different runs have in common up to the "
        "ends of phases is trained once if it is shared."
    )
    everything = found["all together"]
    ratio = f"{share(everything)} ({everything['shared']:,} of {everything['asked for']:,})"
    goal = Goal("epochs of CIFAR and SVHN, shared", "asked for", ratio)
    counts = pd.DataFrame([{"of": name, **epochs} for name, epochs in found.items()])
    report("epochs", given.output, CPU, how, [goal], {"Epochs:": rows}, {"epochs": counts})
    return 0


def share(epochs: Mapping[str, int]) -> str:
    """Return what is left of the epochs asked for if what is common is trained once."""
    return f"{epochs['shared'] / epochs['asked for']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
