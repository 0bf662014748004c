"""Order the runs of a sweep, so that shared prefixes are trained first.

Runs with equal initial epochs share a prefix. A separate job trains it once, without averaging, and
saves it; the runs start from it. A prefix can start from a shorter prefix. Runs without a shared
prefix keep the user's order.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from phaseavg.errors import UserError
from phaseavg.runs.prefixes import digest, identity_of, prefix_settings, saved
from phaseavg.sweep.cells import Run
from phaseavg.targets import Part

Node = tuple[int, str]
"""A number of epochs, and a hash of the prefix of this length and of its execution options."""


@dataclass
class Job:
    """A run to train, or a prefix to train for several runs.

    Attributes:
        run: the run; the run of a prefix ends with the prefix.
        start: epochs that the job does not train: those of its prefix or of its checkpoint.
        parent: the job that trains the prefix that the run starts from, if any.
        guests: the averages that a prefix contains for its runs, by identity.
    """

    run: Run
    start: int = 0
    parent: "Job | None" = None
    guests: dict[str, Part] = field(default_factory=dict)

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

    def serve(self, averages: Collection[Part]) -> None:
        """Add averages to a prefix, and to the prefixes that it starts from."""
        for average in averages:
            if identity := identity_of(average, self.run.epochs):
                self.guests.setdefault(identity, average)
        if self.parent is not None:
            self.parent.serve(averages)

    def is_stored(self) -> bool:
        """Return whether the job is a prefix that is saved, for any device and version."""
        if not self.is_prefix:
            return False
        end = self.run.epochs
        files = saved(self.run.settings.share.dir, self.run.prefixes.key(end), end)
        return any(self.guests.keys() <= file.averages.keys() for file in files)


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
    origins = {}
    for run in runs:
        execution = run.settings.execution.model_dump()
        origins[run.run_id] = origin = digest([run.prefixes.origin, execution])
        ends = (phase.end for phase in run.prefixes.schedule.phases)
        points[origin].update(end for end in ends if end <= run.prefixes.limit)
    return {
        run.run_id: [
            (epochs, digest([origins[run.run_id], run.prefixes.key(epochs)]))
            for epochs in sorted(points[origins[run.run_id]])
            if epochs <= run.prefixes.limit
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
    prefixes: dict[Node, Job] = {}
    first: dict[Node, Run] = {}  # a run with this prefix
    jobs = []
    for run in runs:
        parent = None
        for node in paths[run.run_id]:
            if node not in prefixes and len(branches[node]) > 1:
                if (prefix := prefix_run(run, node[0], {})) is None:
                    continue
                start = 0 if parent is None else parent.run.epochs
                prefixes[node], first[node] = Job(prefix, start, parent), run
            parent = prefixes.get(node, parent)
        start = done.get(run.run_id, 0) if parent is None else parent.run.epochs
        jobs.append(Job(run, start, parent))
    for job in sorted(jobs, key=lambda job: job.run.run_id):  # of equal averages, the first counts
        if job.parent is not None:
            job.parent.serve(job.run.prefixes.averages.values())
    for node, job in prefixes.items():
        job.run = prefix_run(first[node], node[0], job.guests) or job.run
    return sorted([*prefixes.values(), *jobs], key=lambda job: job.level)


def prefix_run(run: Run, epochs: int, guests: Mapping[str, Part]) -> Run | None:
    """Return the run that trains a prefix of `run`; None if a cut schedule would change it.

    Args:
        run: a run that starts with the prefix.
        epochs: the length of the prefix.
        guests: the averages that the prefix contains, by identity.
    """
    share = run.settings.share.model_copy(update={"prefix": epochs, "guests": dict(guests)})
    overrides = [f"share.prefix={epochs}"]
    overrides += [f"+share.guests.{n}={literal(part)}" for n, part in guests.items()]
    try:
        settings = prefix_settings(run.settings.model_copy(update={"share": share}))
    except UserError:
        return None
    return Run([*run.overrides, *overrides], settings)
