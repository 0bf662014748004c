"""Order the runs of a sweep, so that shared prefixes are trained first.

Runs with equal initial epochs share a prefix. A separate job trains it once, without averaging, and
saves it; the runs start from it. A prefix can start from a shorter prefix. Runs without a shared
prefix keep the user's order.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from phaseavg.config import NO_TRACKING
from phaseavg.runs.prefixes import OWN, Average, digest, saved
from phaseavg.sweep.cells import Run, override_key, parse_overrides

Node = tuple[int, str]
"""A number of epochs, and the key of the prefix of this length."""

NOTHING = "phaseavg.averaging.NoAveraging"
"""Target of `averaging=none`."""

REPLACED = ("averaging", "averaging/weights", "tracking")
"""Config groups whose options a prefix does not take from its runs."""


@dataclass
class Job:
    """A run to train, or a prefix to train for several runs.

    Attributes:
        run: the run; the run of a prefix ends with the prefix.
        start: epochs that the job does not train: those of its prefix or of its checkpoint.
        parent: the job that trains the prefix that the run starts from, if any.
        is_prefix: whether the job trains a prefix.
        guests: the averages that a prefix contains for its runs, by name.
    """

    run: Run
    start: int = 0
    parent: "Job | None" = None
    is_prefix: bool = False
    guests: dict[str, Average] = field(default_factory=dict)

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
        guests = [
            f"+share.guests.{name}=" + literal({"averaging": guest.part, "epochs": guest.epochs})
            for name, guest in self.guests.items()
        ]
        return [*self.run.overrides, *(["share.save=true"] if self.is_prefix else []), *guests]

    def serve(self, averages: Collection[Average]) -> None:
        """Add averages to a prefix, and to the prefixes that it starts from."""
        end = self.run.epochs
        observers = [a for name, a in self.run.prefixes.averages.items() if name != OWN]
        known = {average.identity(end) for average in (*observers, *self.guests.values())}
        for average in averages:
            identity = average.identity(end)
            if identity is not None and identity not in known:
                self.guests[f"g{digest([average.part, average.epochs])[:8]}"] = average
                known.add(identity)
        if self.parent is not None:
            self.parent.serve(averages)

    def is_stored(self) -> bool:
        """Return whether a prefix is saved, for any device and version."""
        end, prefixes = self.run.epochs, self.run.prefixes
        needs = {*prefixes.needs(end).values(), *(a.identity(end) for a in self.guests.values())}
        files = saved(self.run.settings.share.dir, prefixes.key(end), end)
        return self.is_prefix and any(needs <= file.averages.keys() for file in files)


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
    todo: Collection[str] | None = None,
    done: Mapping[str, int] | None = None,
) -> list[Job]:
    """Return jobs for runs and their shared prefixes, each after the prefix that it starts from.

    Args:
        runs: the runs of a sweep. The prefixes depend on all of them, so that they stay the same
            when the sweep is continued.
        todo: the ids of the runs to train; by default all.
        done: the epochs in each run's latest checkpoint, by run id.
    """
    done = done or {}
    nodes = prefix_nodes(runs)
    users = Counter(node for run in runs for node in nodes[run.run_id])
    prefixes: dict[Node, Job] = {}
    shorter: dict[Node, list[Node]] = {}
    starts: dict[str, Job] = {}
    for run in runs:
        path = nodes[run.run_id]
        for length, node in reversed([*enumerate(path)]):
            if users[node] > 1 and (node in prefixes or (prefix := prefix_run(run, node))):
                if node not in prefixes:
                    prefixes[node], shorter[node] = Job(prefix, is_prefix=True), path[:length]
                starts[run.run_id] = prefixes[node]
                break
    for node, job in prefixes.items():
        if parents := [prefixes[n] for n in shorter[node] if n in prefixes]:
            job.parent, job.start = parents[-1], parents[-1].run.epochs
    for run in sorted(runs, key=lambda run: run.run_id):  # of equal averages, the first is computed
        if run.run_id in starts:
            starts[run.run_id].serve(run.prefixes.averages.values())

    jobs = []
    for run in runs:
        parent, finished = starts.get(run.run_id), done.get(run.run_id, 0)
        if parent is not None and parent.run.epochs > finished:
            jobs.append(Job(run, parent.run.epochs, parent))
        else:
            jobs.append(Job(run, finished))
    if todo is not None:
        jobs = [job for job in jobs if job.run.run_id in todo]
    needed: list[Job] = []
    for job in jobs:
        ancestor = job.parent
        while ancestor is not None and ancestor not in needed:
            needed.append(ancestor)
            ancestor = ancestor.parent
    for job in needed:
        job.run = in_share_folder(job.run, sorted(job.guests))
    return sorted([*needed, *jobs], key=lambda job: job.level)


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
    changes = {
        "averaging": {"_target_": NOTHING},
        "schedule": {**schedule, **cut},
        "tracking": NO_TRACKING,
        "save_weights": False,
    }
    overrides = [o for o in run.overrides if override_group(o) not in REPLACED]
    overrides += ["averaging=none", "tracking=none", "save_weights=false"]
    overrides += [f"schedule.{k}={literal(v)}" for k, v in cut.items()]
    prefix = Run(overrides, run.settings.model_copy(update=changes))
    return prefix if prefix.prefixes.key(epochs) == key else None


def in_share_folder(run: Run, guests: Sequence[str]) -> Run:
    """Return the run of a prefix with a folder of its own in `share.dir`.

    A checkpoint contains the guests, so prefixes with different guests have different folders.
    """
    share = run.settings.share.dir
    folder = share / "runs" / digest(guests)
    changes = {"runs_dir": folder, "records_dir": folder}
    overrides = [f"{name}={literal(str(path))}" for name, path in changes.items()]
    overrides.append(f"share.dir={literal(str(share))}")
    return Run([*run.overrides, *overrides], run.settings.model_copy(update=changes))


def override_group(override: str) -> str:
    """Return the first component of an override's key: its config group or top-level key."""
    return override_key(parse_overrides([override])[0]).partition(".")[0]
