"""The Hydra sweeper: runs what is asked for and is not finished, under any launcher.

    python train.py -m table=1a,1c model=cnn13 seed=0,1
    python train.py -m averaging=none,phasewise seed=0,1,2

Equal runs are one, finished ones are left out, a run that fails stops no other, and the same
command goes on wherever it was cut.
"""

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from math import prod
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from phaseavg import cli
from phaseavg.config import check
from phaseavg.errors import Diverged, Interrupted, SweepFailed
from phaseavg.runs.folder import in_progress, lacking, read_result, record_failure
from phaseavg.sweep.cells import Compose, Request, Run, parsed, read_request, runs_of, values_of

MANY = 20
"""Cells that take some seconds to compose."""


def composer(context: HydraContext, master: DictConfig) -> Compose:
    """Return what composes a run's config as the launchers do."""

    def compose(overrides: Sequence[str]) -> DictConfig:
        config = context.config_loader.load_sweep_config(master, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config

    return compose


def plain_runs(overrides: list[Override], compose: Compose) -> dict[str, Run]:
    """Return the runs of all combinations of the values of `overrides`, by run id."""
    runs: dict[str, Run] = {}
    composed: dict[tuple[str, ...], DictConfig] = {}
    (combinations,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    for combination in combinations:
        rest = tuple(o for o in combination if not o.startswith("seed="))
        config = composed.get(rest)
        if config is None:  # which takes the time; a seed is soon set
            config = composed[rest] = compose(rest)
        for seed in parsed(o for o in combination if o.startswith("seed=")):
            config.seed = seed.value()
        settings = check(config)
        runs.setdefault(settings.run_id, Run(combination, settings))
    return runs


def asked_for(
    request: Request, compose: Compose, loader: ConfigLoader
) -> tuple[dict[str, Run], int]:
    """Return the runs of a request by run id, and how many it asks for, equal ones counted each."""
    if request.tables:
        asked = sum(len(request.seeds[cell.table]) for cell in request.cells)
        return runs_of(request.cells, request.seeds, compose), asked
    overrides = parsed(request.common, loader)
    asked = prod(len(values_of(override)) for override in overrides)
    return plain_runs(overrides, compose), asked


def result_of(run: Run) -> Mapping[str, Any] | None:
    """Return the outcome of a run, wherever it is recorded; None if it has none."""
    results = (read_result(place) for place in run.settings.places)
    return next((result for result in results if result), None)


def sweep(
    arguments: list[str], context: HydraContext, task: TaskFunction, config: DictConfig
) -> Sequence[JobReturn]:
    """Run what `arguments` ask for and is not finished.

    Args:
        arguments: overrides, of which `table` and what narrows it, or in a plain sweep any, may
            have several values.
        context: of Hydra, which composes.
        task: trains a run.
        config: composed without what has several values.

    Raises:
        UserError: if what is asked for does not exist.
        SweepFailed: once all is over, if a run failed or diverged.
    """
    compose = composer(context, config)
    options = context.config_loader.get_group_options("table")
    loader = context.config_loader
    request = read_request(arguments, options, compose, loader)
    if len(request.cells) > MANY and not config.plan:
        print(f"composing {len(request.cells)} cells …", flush=True)
    runs, asked = asked_for(request, compose, loader)
    if config.plan:
        from phaseavg.sweep.plan import plan  # needs what a bare host that trains may lack

        print(plan(request, runs, asked, result_of), flush=True)
        return []

    there, held, missing = sorted_out(runs)
    elsewhere = f", {len(held)} in training by another process" if held else ""
    print(
        f"{asked} runs asked for, {len(runs)} different ones: {len(there)} there already"
        f"{elsewhere}, {len(missing)} to train",
        flush=True,
    )
    jobs = [
        [*run.overrides, f"hydra.job.name='run {number} of {len(missing)}'"]
        for number, run in enumerate(missing, 1)
    ]
    stamps = [stamp_of(run) for run in missing]
    returned: Sequence[JobReturn] = []
    try:
        if jobs:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=task, config=config
            )
            with terminable():
                returned = launcher.launch(jobs, initial_job_idx=0)
        trouble = ""
    except KeyboardInterrupt:
        counts = counted(outcomes(missing, stamps), there, held)
        print(f"sweep: {counts}; {command()} goes on", flush=True)
        raise
    except Exception as error:  # of the launcher: one of its processes was killed, for example
        trouble = f"the launcher failed: {' '.join(repr(error).split())}"
        if [stamp_of(run) for run in missing] == stamps:
            raise SweepFailed(f"{trouble}; nothing was run") from error

    raised = [job._return_value if job.status is JobStatus.FAILED else None for job in returned]
    if config.dry_run:
        if failures := sum(error is not None for error in raised):
            raise SweepFailed(f"sweep: {failures} of {len(missing)} would fail; see above")
        return returned

    reasons = {}
    results = outcomes(missing, stamps)
    for run, result, error, stamp in zip_longest(missing, results, raised, stamps):
        folder = run.settings.run_folder
        if result is None and not in_progress(folder):  # which another process may have begun
            reasons[run.settings.run_id] = str(error or trouble or "it did not end as runs do")
            if stamp_of(run)["failure.json"] == stamp["failure.json"]:
                record_failure(folder, reasons[run.settings.run_id])
    ended = there | {r.settings.run_id: o for r, o in zip(missing, results, strict=True) if o}
    diverged = {i: str(Diverged(o)) for i, o in ended.items() if o["status"] == "diverged"}
    summary = f"sweep: {counted(results, there, held, failed=len(reasons))}"
    if reasons or diverged:
        lines = [f"{run_id}: {reason}" for run_id, reason in (reasons | diverged).items()]
        raise SweepFailed("\n".join([*lines, f"{summary}; to go on: {command()}"]))
    print(summary, flush=True)
    return returned


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end what a launcher does as Ctrl-C does, so that it stops its processes."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, "interrupted; the same command goes on from what is saved")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


Outcome = Mapping[str, Any]


def sorted_out(runs: Mapping[str, Run]) -> tuple[dict[str, Outcome], list[Run], list[Run]]:
    """Return what has ended, by run id; the runs that another process trains; those to train."""
    there, held, missing = {}, [], []
    for run_id, run in runs.items():
        result = None if run.settings.force else result_of(run)
        if result:
            there[run_id] = result
            if lacks := lacking(run.settings.run_folder, result, run.settings):
                print(f"{run_id}: finished before, {lacks} (force=true repeats it)", flush=True)
        elif in_progress(run.settings.run_folder):
            held.append(run)
            print(f"{run_id}: another process is training it", flush=True)
        else:
            missing.append(run)
    return there, held, missing


Stamp = dict[str, int | None]


def stamp_of(run: Run) -> Stamp:
    """Return when what a run ends with was written, in its file system's nanoseconds."""
    paths = {name: run.settings.run_folder / name for name in ("result.json", "failure.json")}
    return {n: path.stat().st_mtime_ns if path.exists() else None for n, path in paths.items()}


def outcomes(runs: Sequence[Run], before: Sequence[Stamp]) -> list[Outcome | None]:
    """Return the outcomes that runs have come to since they were stamped; None where none.

    With `force=true` there may be one from before.
    """
    return [
        read_result(run.settings.run_folder)
        if stamp_of(run)["result.json"] != stamp["result.json"]
        else None
        for run, stamp in zip(runs, before, strict=True)
    ]


def counted(
    results: Sequence[Outcome | None],
    there: Mapping[str, Outcome],
    held: Sequence[Run],
    failed: int = 0,
) -> str:
    """Return in words how many of a sweep's runs have ended how.

    Args:
        results: of the runs that it was to train.
        there: outcomes that there were before.
        held: runs that another process trains.
        failed: how many of those without result have failed; the others were not run.
    """
    statuses = Counter("left" if result is None else result["status"] for result in results)
    parts = {
        "finished": statuses["finished"],
        "there already": len(there),
        "of these diverged": sum(result["status"] == "diverged" for result in there.values()),
        "diverged": statuses["diverged"],
        "failed": failed,
        "not run, or in training by another process": statuses["left"] - failed + len(held),
    }
    return ", ".join(
        f"{n} {what}" for what, n in parts.items() if n or what in ("finished", "there already")
    )


def command() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["python", *(cli.typed or sys.argv)])
