"""What of a sweep fits into a time: the cheapest way to complete cells comes first."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from phaseavg.errors import UserError
from phaseavg.runs.prefix import cut_points, pieces
from phaseavg.sweep.cells import Cell, Run
from phaseavg.sweep.claims import CLAIMS
from phaseavg.sweep.shared import Node, Tree

UNITS = {"h": 3600, "m": 60, "s": 1}


def seconds_of(budget: str | float) -> float:
    """Return the seconds of a budget such as 25m or 1h30m.

    Raises:
        UserError: if it is none.
    """
    found = re.findall(r"(\d+(?:\.\d+)?)([hms])", str(budget))
    if not found or "".join(n + unit for n, unit in found) != str(budget):
        raise UserError(f"budget={budget}: is no time; write 90s, 25m, 2h or 1h30m")
    return sum(float(number) * UNITS[unit] for number, unit in found)


class Work:
    """What is to be trained of some runs, in pieces that several of them may have in common.

    Args:
        runs: by run id.
        done: by run id, the epochs that need not be trained again.
        shared: whether what runs have in common is trained once.
    """

    def __init__(self, runs: Mapping[str, Run], done: Mapping[str, int], shared: bool) -> None:
        tree = Tree(runs)
        points = cut_points(tree.trajectories.values())
        self.pieces: dict[str, dict[tuple[str, Node], int]] = {}
        for run_id, trajectory in tree.trajectories.items():
            self.pieces[run_id] = {}
            for node, epochs in pieces(trajectory, points).items():
                left = min(epochs, node[0] - done.get(run_id, 0))
                if left > 0:
                    whose = "" if shared else run_id
                    self.pieces[run_id][whose, node] = left
        for run_id in runs.keys() - tree.trajectories.keys():
            alone = tree.all[run_id]
            total = alone.total_epochs if alone else 0
            self.pieces[run_id] = {(run_id, (total, "")): total - done.get(run_id, 0)}

    def epochs(self, run_ids: Iterable[str]) -> int:
        """Return the epochs that are to be trained of some runs."""
        return sum(self.of(run_ids).values())

    def of(self, run_ids: Iterable[str]) -> dict[tuple[str, Node], int]:
        """Return the pieces of some runs, with their epochs."""
        found: dict[tuple[str, Node], int] = {}
        for run_id in run_ids:
            for piece, epochs in self.pieces[run_id].items():
                found[piece] = max(epochs, found.get(piece, 0))
        return found


def in_words(seconds: float) -> str:
    """Return a time as one reads it."""
    for size, unit in ((86400, "days"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@dataclass(frozen=True)
class Bundle:
    """Runs that are of use together.

    Attributes:
        runs: their ids.
        cells: how many cells they complete.
    """

    runs: frozenset[str]
    cells: int


def bundles(runs: Mapping[str, Run]) -> list[Bundle]:
    """Return the pairs of cells that claims compare, for each network; other cells alone.

    A run that is of no cell is a bundle by itself.
    """
    of_cell: dict[Cell, set[str]] = defaultdict(set)
    for run_id, run in runs.items():
        for cell in run.cells:
            of_cell[cell].add(run_id)
    by_place = {(c.table, c.column, c.dataset, c.model): c for c in of_cell}
    networks = dict.fromkeys((c.dataset, c.model) for c in of_cell)

    def cells(side: tuple[str, str], network: tuple[str, str]) -> set[Cell]:
        table, column = side
        place = (table, column, *network)
        return {by_place[place]} if place in by_place else set()

    groups = [
        cells(pair.left, network) | cells(pair.right, network)
        for claim in CLAIMS
        for pair in claim.pairs
        for network in networks
    ]
    together = set().union(*groups)
    groups += [{cell} for cell in of_cell if cell not in together]
    found = [
        Bundle(frozenset().union(*(of_cell[cell] for cell in group)), len(group))
        for group in groups
        if group
    ]
    alone = [Bundle(frozenset({run_id}), 1) for run_id, run in runs.items() if not run.cells]
    return list(dict.fromkeys([*found, *alone]))


def by_seed(bundle: Bundle, runs: Mapping[str, Run]) -> list[Bundle]:
    """Return the parts of a bundle that have one seed each."""
    seeds: dict[int, set[str]] = defaultdict(set)
    for run_id in bundle.runs:
        seeds[runs[run_id].settings.seed].add(run_id)
    return [Bundle(frozenset(run_ids), bundle.cells) for _, run_ids in sorted(seeds.items())]


def affordable(
    runs: Mapping[str, Run],
    work: Work,
    seconds_per_epoch: Callable[[Run], float],
    budget: float,
) -> list[tuple[list[str], float]]:
    """Return the runs to train in a time, bundle by bundle, and the seconds that each will take.

    The bundle that costs least for each cell that it completes comes first, again and again, with
    what is chosen already for nothing. What is left of the time goes to bundles of a single seed.

    Args:
        runs: to train, by run id.
        work: what there is to do of each.
        seconds_per_epoch: of a run.
        budget: seconds.
    """
    found: list[tuple[list[str], float]] = []
    chosen: set[str] = set()
    spent = 0.0
    paid: set[tuple[str, Node]] = set()
    whole = bundles(runs)
    for offered in (whole, [part for bundle in whole for part in by_seed(bundle, runs)]):
        prices: dict[Bundle, dict[tuple[str, Node], float]] = {}
        for bundle in offered:
            if not bundle.runs <= chosen:
                # All that have a piece in common have data and network in common, too.
                rates = {p: seconds_per_epoch(runs[r]) for r in bundle.runs for p in work.pieces[r]}
                epochs = work.of(bundle.runs)
                prices[bundle] = {piece: epochs[piece] * rates[piece] for piece in epochs}
        while prices:
            left = {
                bundle: price
                for bundle, parts in prices.items()
                if spent + (price := sum(s for p, s in parts.items() if p not in paid)) <= budget
            }
            if not left:
                break
            best = min(left, key=lambda b: (left[b] / b.cells, sorted(b.runs)))
            spent += left[best]
            paid |= prices.pop(best).keys()
            if new := sorted(best.runs - chosen):
                found.append((new, left[best]))
            chosen |= best.runs
    return found
