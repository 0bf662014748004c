"""Order the runs of a sweep, so that shared prefixes are trained first.

Runs with equal initial epochs share a prefix. A separate job trains it once, without averaging, and
saves it; the runs start from it. A prefix can start from a shorter prefix. Runs without a shared
prefix keep the user's order.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from phaseavg.errors import UserError
from phaseavg.runs.prefixes import digest, identity_of, prefix_settings, saved, saved_lengths
from phaseavg.sweep.cells import Run
from phaseavg.targets import Part
from phaseavg.training.sharing import uses_prefixes

Node = tuple[int, str]
"""A number of epochs, and a hash of the prefix of this length and of its execution options."""


@dataclass
class Job:
    """A run to train, or a prefix to train for several runs.

    Attributes:
        run: the run; the run of a prefix ends with the prefix.
        start: epochs that the job does not train: those of its prefix or of its checkpoint.
        parent: the job that trains the prefix that the run starts from, if any.
    """

    run: Run
    start: int = 0
    parent: "Job | None" = None

    @property
    def is_prefix(self) -> bool:
        """Whether the job trains a prefix."""
        return self.run.settings.share.prefix is not None

    @property
    def level(self) -> int:
        """The number of ancestors, which must finish before this job starts."""
        return 0 if self.parent is None else self.parent.level + 1

    @property
    def epochs(self) -> int:
        """The number of epochs that the job trains."""
        return self.run.epochs - self.start

    def is_stored(self) -> bool:
        """Return whether the job is a prefix that is saved, for any device and version."""
        return self.is_prefix and self.saved_epochs() == self.run.epochs

    def saved_epochs(self) -> int:
        """Return the length of the run's longest saved prefix, for any device and version."""
        prefixes, folder = self.run.prefixes, self.run.settings.share.dir
        lengths = saved_lengths(folder) if uses_prefixes(self.run.settings) else []
        for epochs in [n for n in lengths if n <= prefixes.limit]:
            needs = set(prefixes.needs(epochs).values())
            files = saved(folder, prefixes.key(epochs), epochs)
            if any(needs <= file.averages.keys() for file in files):
                return epochs
        return 0


def literal(value: Any) -> str:
    """Return a value in Hydra's override syntax."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes().replace("${", "\\${")
    return "null" if value is None else str(value)


def prefix_nodes(runs: Iterable[Run]) -> dict[str, list[Node]]:
    """Return the possible prefixes of each run: the phase ends of runs with the same origin."""
    points: dict[str, set[int]] = defaultdict(set)
    origins, limits = {}, {}
    for run in runs:
        shares = uses_prefixes(run.settings) and not run.settings.dry_run
        limits[run.run_id] = limit = run.prefixes.limit if shares else 0
        execution = run.settings.execution.model_dump()
        origins[run.run_id] = origin = digest([run.prefixes.origin, execution])
        ends = (phase.end for phase in run.prefixes.schedule.phases)
        points[origin].update(end for end in ends if end <= limit)
    return {
        run.run_id: [
            (epochs, digest([origins[run.run_id], run.prefixes.key(epochs)]))
            for epochs in sorted(points[origins[run.run_id]])
            if epochs <= limits[run.run_id]
        ]
        for run in runs
    }


def arrange_jobs(runs: Sequence[Run], done: Mapping[str, int] | None = None) -> list[Job]:
    """Return jobs for runs and their shared prefixes, each after the prefix that it starts from.

    Args:
        runs: the runs to train.
        done: the epochs in each run's latest checkpoint, by run id.
    """
    done = done or {}
    nodes = prefix_nodes(runs)
    paths = {
        run.run_id: [n for n in nodes[run.run_id] if n[0] > done.get(run.run_id, 0)] for run in runs
    }
    users = Counter(node for path in paths.values() for node in path)
    branches: dict[Node | str, set[Node | str]] = defaultdict(set)
    for run_id, path in paths.items():
        shared = [node for node in path if users[node] > 1]
        for node, following in pairwise([*shared, run_id]):
            branches[node].add(following)
    sharing: dict[Node, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.run_id):  # of equal averages, the first counts
        if any(len(branches[node]) > 1 for node in paths[run.run_id]):
            for node in nodes[run.run_id]:
                sharing[node].append(run)
    prefixes: dict[Node, Job] = {}
    jobs = []
    for run in runs:
        parent, saved_epochs = None, done.get(run.run_id, 0)
        for node in nodes[run.run_id]:
            if len(branches[node]) < 2:
                continue
            if node not in prefixes and (prefix := prefix_run(run, node[0], sharing[node])):
                prefixes[node] = Job(prefix, parent.run.epochs if parent else 0, parent)
            parent = prefixes.get(node, parent)
        if parent is None or parent.run.epochs <= saved_epochs:
            jobs.append(Job(run, saved_epochs))
        else:
            jobs.append(Job(run, parent.run.epochs, parent))
    return sorted([*prefixes.values(), *jobs], key=lambda job: job.level)


def prefix_run(run: Run, epochs: int, sharing: Iterable[Run]) -> Run | None:
    """Return the run that trains a prefix of `run`; None if a cut schedule would change it.

    Args:
        run: a run that starts with the prefix.
        epochs: the length of the prefix.
        sharing: all runs that start with the prefix, which contains their averages.
    """
    guests: dict[str, Part] = {}
    for average in (a for member in sharing for a in member.prefixes.averages.values()):
        if identity := identity_of(average, epochs):
            guests.setdefault(identity, average)
    share = run.settings.share.model_copy(update={"prefix": epochs, "guests": guests})
    overrides = [f"share.prefix={epochs}"]
    overrides += [f"+share.guests.{n}={literal(part)}" for n, part in guests.items()]
    try:
        settings = prefix_settings(run.settings.model_copy(update={"share": share}))
    except UserError:
        return None
    return Run([*run.overrides, *overrides], settings)
