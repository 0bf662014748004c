"""The order of a sweep's runs: a run that others start from comes before them.

Runs that begin alike share a prefix, which a run without averaging trains once: one of the sweep's
own where there is one, else one that ends with the prefix. Runs that share nothing come in the
user's order.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from phaseavg.config import Settings
from phaseavg.runs.prefixes import OWN, Average, digest, saved
from phaseavg.sweep.cells import Run, key_of, parsed

Node = tuple[int, str]
"""A number of epochs, and the key of the prefix that long."""

Stored = Callable[[Settings, Node, Iterable[str]], bool]
"""Whether a prefix with averages of these identities is saved already."""


def is_stored(settings: Settings, node: Node, needs: Iterable[str]) -> bool:
    """Return whether a prefix that has these averages is saved, with any execution."""
    epochs, key = node
    return any(
        set(needs) <= prefix.averages.keys() for prefix in saved(settings.share.dir, key, epochs)
    )


NOTHING = "phaseavg.averaging.NoAveraging"
"""Target of `averaging=none`."""


@dataclass
class Job:
    """A run to train, and what it does for the runs that start from it.

    Attributes:
        run: to train.
        start: epochs of the prefix that it starts from; 0 for none.
        parent: the job that trains this prefix; None if it is saved already.
        keep: epochs after which it saves a prefix.
        guests: averages that these need, by name, with the last of these epochs.
    """

    run: Run
    start: int = 0
    parent: "Job | None" = None
    keep: set[int] = field(default_factory=set)
    guests: dict[str, tuple[Average, int]] = field(default_factory=dict)

    @property
    def level(self) -> int:
        """How many jobs come before it, one after the other."""
        return 0 if self.parent is None else self.parent.level + 1

    @property
    def epochs(self) -> int:
        """Epochs that it trains."""
        return self.run.epochs - self.start

    @property
    def overrides(self) -> list[str]:
        """The overrides that make it."""
        keep = [f"share.keep={sorted(self.keep)}".replace(" ", "")] if self.keep else []
        guests = [
            f"+share.guests.{name}="
            + literal({"averaging": guest.part, "epochs": guest.epochs, "until": until})
            for name, (guest, until) in self.guests.items()
        ]
        return [*self.run.overrides, *keep, *guests]

    def serve(self, epochs: int, averages: Iterable[Average]) -> None:
        """Keep a prefix with some averages, which its own prefix then has to have as well."""
        self.keep.add(epochs)
        own = {a.identity(epochs) for n, a in self.run.prefixes.averages.items() if n != OWN}
        for average in averages:
            identity = average.identity(epochs)
            if identity is None or identity in own:
                continue
            same = [n for n, (a, _) in self.guests.items() if a.identity(epochs) == identity]
            name = same[0] if same else f"g{digest([average.part, average.epochs])[:8]}"
            guest, until = self.guests.get(name, (average, 0))
            self.guests[name] = guest, max(until, epochs)
        if self.parent is not None and self.start:
            self.parent.serve(self.start, [*self.run.prefixes.averages.values(), *averages])


def literal(value: Any) -> str:
    """Return a value as Hydra's grammar has it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes().replace("${", "\\${")
    return "null" if value is None else str(value)


def nodes_of(runs: Iterable[Run]) -> dict[str, list[Node]]:
    """Return the nodes of each run, by its id: where a run of the same origin ends a phase."""
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


def arranged(
    runs: Sequence[Run],
    done: Mapping[str, int] | None = None,
    stored: Stored = lambda settings, node, needs: False,
) -> list[Job]:
    """Return the jobs that train runs, each after the one that it starts from.

    Args:
        runs: to train.
        done: by run id, the epochs that a run's own checkpoints have.
        stored: tells whether a prefix is saved already; by default none is.
    """
    done = done or {}
    nodes = nodes_of(runs)
    passing: Counter[Node] = Counter(
        node for run in runs for node in nodes[run.run_id] if node[0] > done.get(run.run_id, 0)
    )
    trained: dict[Node, Job] = {}
    jobs: dict[str, Job] = {}

    def add(run: Run, own: Sequence[Node]) -> None:
        """Add a job that starts from the longest prefix."""
        job = jobs[run.run_id] = Job(run)
        finished = done.get(run.run_id, 0)
        for epochs, key in reversed(own):
            if epochs <= finished:
                job.start = finished
                break
            needs = run.prefixes.needs(epochs).values()
            if stored(run.settings, (epochs, key), needs):
                job.start = epochs
                break
            if (parent := trained.get((epochs, key))) is not None:
                job.start, job.parent = epochs, parent
                parent.serve(epochs, run.prefixes.averages.values())
                break
        else:
            job.start = finished
        if run.prefixes.averages_nothing:
            for node in own:
                if node[0] > job.start:
                    trained.setdefault(node, job)

    for run in runs:
        if run.prefixes.averages_nothing:
            add(run, nodes[run.run_id])
    rest = [run for run in runs if not run.prefixes.averages_nothing]
    for run in sorted(rest, key=lambda run: -run.prefixes.limit):
        finished = done.get(run.run_id, 0)
        shared = [n for n in nodes[run.run_id] if passing[n] > 1 and n[0] > finished]
        if not shared or shared[-1] in trained:
            continue
        if stored(run.settings, shared[-1], run.prefixes.needs(shared[-1][0]).values()):
            continue
        prefix = ending_with(run, shared[-1])
        if prefix is not None and prefix.run_id not in jobs:
            add(prefix, [n for n in nodes[run.run_id] if n[0] <= shared[-1][0]])
    for run in rest:
        add(run, nodes[run.run_id])
    return sorted(jobs.values(), key=lambda job: job.level)


def ending_with(run: Run, node: Node) -> Run | None:
    """Return the run without averaging that ends with a prefix of `run`.

    Returns None if its phases cannot be cut there, because the rate depends on their length.
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
    overrides = [o for o in run.overrides if group_of(o) not in ("averaging", "averaging/weights")]
    overrides += ["averaging=none", *(f"schedule.{k}={literal(v)}" for k, v in cut.items())]
    prefix = Run(overrides, run.settings.model_copy(update=changes))
    return prefix if prefix.prefixes.key(epochs) == key else None


def group_of(override: str) -> str:
    """Return the config group or the first key that an override sets; with its package, if any."""
    return key_of(parsed([override])[0]).partition(".")[0]
