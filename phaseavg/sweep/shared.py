"""What the runs of a sweep have in common, and in which order that lets them be trained.

A shared trajectory is trained up to the last phase end that runs have in common, and leaves its
state at each at which some of them part. No run starts before the state from which it goes on is
there.
"""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from phaseavg.cli import of_the_paper
from phaseavg.errors import UserError
from phaseavg.runs.prefix import Averaging, cut_points, pieces
from phaseavg.sweep.cells import (
    Cell,
    Compose,
    Composed,
    Request,
    Run,
    cells_of,
    read_table,
    runs_of,
)
from phaseavg.training.sharing import Carried, Trunk, Wanted

Node = tuple[int, str]
"""An epoch, and the key of the trajectory up to it."""


@dataclass
class Wave:
    """Jobs that can be run in any order, and beside each other.

    Attributes:
        trunks: shared trajectories, each with the overrides of a run on it.
        runs: those whose prefix is there by then.
    """

    trunks: list[tuple[Trunk, list[str]]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)


def neighbours(
    request: Request,
    options: Collection[str],
    carry: str | Sequence[str],
    compose: Compose,
    composed: Composed,
) -> dict[str, Run]:
    """Return the runs of the cells of tables that may begin as a request's do.

    They have a row and an optimizer in common with one of these, and get its seeds.

    Args:
        request: of a sweep; a plain one has none.
        options: of the config group `table`.
        carry: which tables: `all` for the paper's and those of the request, `asked` for none, or
            their names.
        compose: to compose a run's config.
        composed: what has been composed already.

    Raises:
        UserError: if there is no such table.
    """
    choices = sorted(set(options) - {"none"})
    if isinstance(carry, str):
        everything = dict.fromkeys([*of_the_paper(choices), *request.tables])
        names: Sequence[str] = list(everything) if carry == "all" else []
    else:
        names = carry
        for name in names:
            if name not in choices:
                raise UserError(
                    f"share.carry={name}: there is no such table; choices: all, asked, or a list "
                    f"of {', '.join(choices)}"
                )
    if not request.tables:
        return {}
    rows = {(cell.dataset, cell.model) for cell in request.cells}
    optimizers = set(map(_optimizer_of, request.cells))  # another one has no epoch in common
    seeds = list(dict.fromkeys(seed for some in request.seeds.values() for seed in some))
    runs: dict[str, Run] = {}
    for name in names:
        # What holds for all runs of this sweep may be what another table compares, or of no use to
        # its cells: these then have nothing in common with the sweep's.
        with contextlib.suppress(UserError, HydraException, OmegaConfBaseException):
            table = request.tables.get(name) or read_table(name, request.common, compose)
            for cell in cells_of(name, table, request.common):
                if (cell.dataset, cell.model) in rows and _optimizer_of(cell) in optimizers:
                    with contextlib.suppress(UserError, HydraException, OmegaConfBaseException):
                        found = runs_of([cell], {name: seeds}, compose, composed)
                        for run_id, run in found.items():
                            if run_id in runs:
                                runs[run_id].cells.append(cell)
                            elif run.trajectory:
                                runs[run_id] = run
    return runs


def _optimizer_of(cell: Cell) -> str:
    return next((o for o in cell.overrides if o.startswith("optimizer=")), "")


class Tree:
    """The trajectories of runs, which part at the ends of phases.

    Args:
        runs: by run id; those whose averages are not known before training share nothing.
    """

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self.runs = runs
        self.all = {run_id: run.trajectory for run_id, run in runs.items()}
        self.trajectories = {i: one for i, one in self.all.items() if one and one.sharable}
        points = cut_points(self.trajectories.values())
        self.paths: dict[str, list[Node]] = {}
        self.passing: dict[Node, list[str]] = defaultdict(list)
        for run_id, trajectory in self.trajectories.items():
            self.paths[run_id] = list(pieces(trajectory, points))
            for node in self.paths[run_id]:
                self.passing[node].append(run_id)

    def leaves_at(self, run_id: str) -> Node | None:
        """Return the last node that a run has in common with another one; None if there is none."""
        shared = [node for node in self.paths.get(run_id, ()) if len(self.passing[node]) > 1]
        return shared[-1] if shared else None

    def path(self, node: Node) -> list[Node]:
        """Return the nodes up to one, itself included."""
        path = self.paths[self.passing[node][0]]
        return path[: path.index(node) + 1]

    def forks(self, nodes: Iterable[Node]) -> set[Node]:
        """Return the nodes after which the ways to some nodes part."""
        after: dict[Node, set[Node]] = defaultdict(set)
        for node in nodes:
            path = self.path(node)
            for earlier, later in itertools.pairwise(path):
                after[earlier].add(later)
        return {node for node, found in after.items() if len(found) > 1}

    def trunk(self, points: Sequence[Node], leaving: Mapping[str, Node]) -> tuple[Trunk, list[str]]:
        """Return the trajectory that leaves its state at some nodes of a path, and a run on it.

        Args:
            points: the nodes, in order.
            leaving: where the runs that are to be trained go on from.
        """

        def averages(run_id: str) -> int:
            return len(self.trajectories[run_id].needs(end))

        end, _ = points[-1]
        on_it = min(self.passing[points[-1]], key=lambda run_id: (averages(run_id), run_id))
        kept: dict[tuple[int, str], Averaging] = {}
        for until, key in reversed(points):  # so that what goes on further is there to be found
            for run_id in self.passing[until, key]:
                trajectory = self.trajectories[run_id]
                for name, identity in trajectory.needs(until).items():
                    if identity not in {average.identity(until) for average in kept.values()}:
                        kept[until, identity] = trajectory.averages[name]
        carry = [
            Carried(averaging=average.part, epochs=average.epochs, until=until)
            for (until, _), average in sorted(kept.items(), key=lambda item: item[0])
        ]
        wanted = {
            (node[0], *sorted(self.trajectories[run_id].needs(node[0]).values()))
            for run_id, node in leaving.items()
            if node in points
        }
        trunk = Trunk(
            name=self.trajectories[on_it].named(end),
            points=[epoch for epoch, _ in points],
            keys=[key for _, key in points],
            carry=carry,
            wanted=[Wanted(epoch=epoch, averages=needs) for epoch, *needs in sorted(wanted)],
        )
        return trunk, self.runs[on_it].overrides


def arranged(runs: Iterable[Run], others: Mapping[str, Run], done: Mapping[str, int]) -> list[Wave]:
    """Return in which order to train runs and what they share.

    Args:
        runs: to train.
        others: runs that are not, but whose averages are carried, and at whose branch points states
            are left.
        done: by run id, the epochs that a run can go on from by itself.
    """
    wanted = {run.settings.run_id: run for run in runs}
    tree = Tree({**others, **wanted})
    branch_nodes = {tree.leaves_at(run_id) for run_id in tree.paths}
    leaving = {
        run_id: node
        for run_id in wanted
        if (node := tree.leaves_at(run_id)) and done.get(run_id, 0) < node[0]
    }
    needed = sorted(set(leaving.values()))
    on_the_way = {node for last in needed for node in tree.path(last)[:-1]}
    branch_nodes |= tree.forks(needed)
    waves: list[Wave] = [Wave()]
    left_in: dict[Node, int] = {}  # the wave in which a state is left, by its node

    def wave(number: int) -> Wave:
        waves.extend(Wave() for _ in range(number + 1 - len(waves)))
        return waves[number]

    for end in needed:
        if end in on_the_way:
            continue
        path = tree.path(end)
        number = max((left_in[node] + 1 for node in path if node in left_in), default=0)
        points = [node for node in path if node in branch_nodes and node not in left_in]
        left_in |= dict.fromkeys(points, number)
        wave(number).trunks.append(tree.trunk(points, leaving))
    for run_id, run in wanted.items():
        wave(left_in[leaving[run_id]] + 1 if run_id in leaving else 0).runs.append(run)
    return waves
