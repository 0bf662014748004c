"""Order the runs of a sweep, so that shared prefixes are trained first.

Runs with equal initial epochs share a prefix. A run without averaging trains the prefix once: a
requested run if possible, otherwise an additional run that ends with the prefix. Runs without a
shared prefix keep the user's order.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from phaseavg.config import Settings
from phaseavg.runs.prefixes import OWN, Average, digest, saved
from phaseavg.sweep.cells import Run, override_key, parse_overrides

Node = tuple[int, str]
"""A number of epochs, and the key of the prefix of this length."""

Stored = Callable[[Settings, Node, Iterable[str]], bool]
"""Returns whether a prefix with averages of these identities is saved."""


def is_stored(settings: Settings, node: Node, needs: Iterable[str]) -> bool:
    """Return whether a prefix with these averages is saved, and the run can use it."""
    epochs, key = node
    return any(
        set(needs) <= prefix.averages.keys() and prefix.may_serve(settings)
        for prefix in saved(settings.share.dir, key, epochs)
    )


NOTHING = "phaseavg.averaging.NoAveraging"
"""Target of `averaging=none`."""


@dataclass
class Job:
    """A run to train, and the prefixes that it saves for other runs.

    Attributes:
        run: the run to train.
        start: the length of the prefix that the run starts from; 0 for no prefix.
        parent: the job that trains this prefix; None if the prefix is saved.
        keep: epochs after which the job saves a prefix.
        guests: averages of other runs, by name, with the last epoch at which they are needed.
    """

    run: Run
    start: int = 0
    parent: "Job | None" = None
    keep: set[int] = field(default_factory=set)
    guests: dict[str, tuple[Average, int]] = field(default_factory=dict)

    @property
    def level(self) -> int:
        """The number of ancestors, which must finish before this job starts."""
        return 0 if self.parent is None else self.parent.level + 1

    @property
    def epochs(self) -> int:
        """The number of epochs that the job trains."""
        return self.run.epochs - self.start

    @property
    def overrides(self) -> list[str]:
        """The overrides that define the job."""
        keep = [f"share.keep={sorted(self.keep)}".replace(" ", "")] if self.keep else []
        guests = [
            f"+share.guests.{name}="
            + literal({"averaging": guest.part, "epochs": guest.epochs, "until": until})
            for name, (guest, until) in self.guests.items()
        ]
        return [*self.run.overrides, *keep, *guests]

    def serve(self, epochs: int, averages: Iterable[Average]) -> None:
        """Save a prefix with these averages; the parent's prefix must contain them too."""
        self.keep.add(epochs)
        ids = {a.identity(epochs) for n, a in self.run.prefixes.averages.items() if n != OWN}
        for average in averages:
            identity = average.identity(epochs)
            if identity is None or identity in ids:
                continue
            names = [n for n, (a, _) in self.guests.items() if a.identity(epochs) == identity]
            name = names[0] if names else f"g{digest([average.part, average.epochs])[:8]}"
            guest, until = self.guests.get(name, (average, 0))
            self.guests[name] = guest, max(until, epochs)
        if self.parent is not None and self.start:
            self.parent.serve(self.start, [*self.run.prefixes.averages.values(), *averages])


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
            (epochs, run.prefixes.key(epochs))
            for epochs in sorted(points[origins[run.run_id]])
            if epochs <= run.prefixes.limit
        ]
        for run in runs
    }


def arrange_jobs(
    runs: Sequence[Run],
    done: Mapping[str, int] | None = None,
    stored: Stored = lambda settings, node, needs: False,
) -> list[Job]:
    """Return jobs for runs, each after the job that trains its prefix.

    Args:
        runs: the runs to train.
        done: the epochs in each run's latest checkpoint, by run id.
        stored: returns whether a prefix is saved; False by default.
    """
    done = done or {}
    nodes = prefix_nodes(runs)
    users: Counter[Node] = Counter(
        node for run in runs for node in nodes[run.run_id] if node[0] > done.get(run.run_id, 0)
    )
    trainers = [run for run in runs if run.prefixes.averages_nothing]
    rest = [run for run in runs if not run.prefixes.averages_nothing]
    waiting: list[tuple[Run, Node]] = []  # runs whose longest shared prefix is not saved
    for run in rest:
        shared = [n for n in nodes[run.run_id] if users[n] > 1 and n[0] > done.get(run.run_id, 0)]
        if shared and not stored(run.settings, shared[-1], needs_of([run], shared[-1])):
            waiting.append((run, shared[-1]))
    trained: dict[Node, Job] = {}
    jobs: dict[str, Job] = {}

    def add(run: Run, run_nodes: Sequence[Node]) -> None:
        """Add a job that starts from the longest available prefix."""
        job = jobs[run.run_id] = Job(run)
        finished = done.get(run.run_id, 0)
        for node in reversed(run_nodes):
            if node[0] <= finished:
                job.start = finished
                break
            if stored(run.settings, node, needs_of([run, *served(run, run_nodes, node)], node)):
                job.start = node[0]
                break
            if (parent := trained.get(node)) is not None:
                job.start, job.parent = node[0], parent
                parent.serve(node[0], run.prefixes.averages.values())
                break
        else:
            job.start = finished
        if run.prefixes.averages_nothing:
            for node in run_nodes:
                if node[0] > job.start:
                    trained.setdefault(node, job)

    def served(run: Run, run_nodes: Sequence[Node], start: Node) -> list[Run]:
        """Return the waiting runs whose prefix `run` can train if it starts from `start`."""
        if not run.prefixes.averages_nothing:
            return []
        return [other for other, node in waiting if node in run_nodes and node[0] >= start[0]]

    for run in trainers:
        add(run, nodes[run.run_id])
    for run, node in sorted(waiting, key=lambda entry: -entry[0].prefixes.limit):
        prefix = None if node in trained else prefix_run(run, node)
        if prefix is not None and prefix.run_id not in jobs:
            add(prefix, [n for n in nodes[run.run_id] if n[0] <= node[0]])
    for run in rest:
        add(run, nodes[run.run_id])
    return sorted(jobs.values(), key=lambda job: job.level)


def needs_of(runs: Iterable[Run], node: Node) -> set[str]:
    """Return the identities of the averages of these runs that begin before a prefix ends."""
    return {need for run in runs for need in run.prefixes.needs(node[0]).values()}


def prefix_run(run: Run, node: Node) -> Run | None:
    """Return a run without averaging that ends with a prefix of `run`.

    Returns None if a shorter phase would change the learning rate of the prefix.
    """
    epochs, key = node
    schedule = run.settings.schedule
    phases = [phase for phase in run.prefixes.schedule.phases if phase.first_epoch < epochs]
    divisor = schedule.get("divisor", 1)
    cut = {
        "epochs": [divisor * (min(phase.end, epochs) - phase.first_epoch) for phase in phases],
        "factors": [phase.factor for phase in phases],
    }
    changes = {"averaging": {"_target_": NOTHING}, "schedule": {**schedule, **cut}}
    replaced = ("averaging", "averaging/weights")
    overrides = [o for o in run.overrides if override_group(o) not in replaced]
    overrides += ["averaging=none", *(f"schedule.{k}={literal(v)}" for k, v in cut.items())]
    prefix = Run(overrides, run.settings.model_copy(update=changes))
    return prefix if prefix.prefixes.key(epochs) == key else None


def override_group(override: str) -> str:
    """Return the first component of an override's key: its config group or top-level key."""
    return override_key(parse_overrides([override])[0]).partition(".")[0]
