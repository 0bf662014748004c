"""The Hydra sweeper: runs what is requested and not finished, under any launcher.

    python train.py -m table=t1a,t1c model=cnn13 seed=0,1
    python train.py -m averaging=none,phasewise seed=0,1,2

Equal runs are trained once, finished ones are left out, a failing run stops no other, and the same
command resumes an interrupted sweep.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from math import prod

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from phaseavg import cli
from phaseavg.config import check
from phaseavg.errors import Diverged, NotStarted, OutOfTime, SweepFailed, UserError
from phaseavg.runs.folder import in_progress, record_failure
from phaseavg.runs.record import RESULT
from phaseavg.sweep.cells import Request, Run, parsed, read_request, runs_of, values_of
from phaseavg.sweep.composing import Compose, cached, composer, config_folders
from phaseavg.sweep.launch import launch
from phaseavg.sweep.order import Job, arranged, is_stored
from phaseavg.sweep.outcomes import (
    FAILURE,
    NewFiles,
    Outcome,
    counted,
    result_of,
    sorted_out,
    without_data,
)
from phaseavg.sweep.progress import SweepProgress
from phaseavg.sweep.rates import epochs_saved, seconds_of
from phaseavg.training.sharing import uses_prefixes

MANY = 20
"""Cells that take some seconds to compose."""


def plain_runs(overrides: list[Override], compose: Compose) -> dict[str, Run]:
    """Return the runs of all combinations of the values of `overrides`, by run id."""
    runs: dict[str, Run] = {}
    composed: dict[tuple[str, ...], DictConfig] = {}
    (combinations,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    for combination in combinations:
        rest = tuple(o for o in combination if not o.startswith("seed="))
        if rest not in composed:  # composing takes long, setting a seed does not
            composed[rest] = compose(rest)
        config = composed[rest]
        for seed in parsed(o for o in combination if o.startswith("seed=")):
            config.seed = seed.value()
        run = Run(combination, check(config))
        runs.setdefault(run.run_id, run)
    return runs


def requested(
    request: Request, compose: Compose, loader: ConfigLoader
) -> tuple[dict[str, Run], int]:
    """Return the different runs of a request by run id, and how many it has with equal ones."""
    if request.tables:
        asked = sum(len(request.seeds[cell.table]) for cell in request.cells)
        return runs_of(request.cells, request.seeds, compose), asked
    overrides = parsed(request.common, loader)
    asked = prod(len(values_of(override)) for override in overrides)
    return plain_runs(overrides, compose), asked


def sweep(
    arguments: list[str], context: HydraContext, task: TaskFunction, config: DictConfig
) -> Sequence[JobReturn]:
    """Run what `arguments` request and is not finished.

    Args:
        arguments: overrides, of which `table` and what narrows it, or in a plain sweep any, may
            have several values.
        context: of Hydra, which composes.
        task: trains a run.
        config: composed without what has several values.

    Raises:
        UserError: if what is requested does not exist, or the data of all runs is missing.
        SweepFailed: at the end, if a run failed or diverged.
    """
    if not isinstance(config.plan, bool):
        raise UserError(f"plan={config.plan}: choices: true, false")
    seconds = None if config.budget is None else seconds_of(config.budget)
    limits = [] if seconds is None else [f"deadline={time.time() + seconds:.0f}"]
    loader, compose = context.config_loader, composer(context, config)
    folders, name = config_folders(context, config), config.hydra.job.config_name
    with cached(compose, folders, name) as compose_cached:
        options = loader.get_group_options("table")
        request = read_request(arguments, options, compose_cached, loader)
        if len(request.cells) > MANY and not config.plan:
            print(f"composing {len(request.cells)} cells …", flush=True)
        runs, asked = requested(request, compose_cached if request.tables else compose, loader)
    if config.plan:
        from phaseavg.sweep.plan import plan  # needs what a bare host that trains may lack

        print(plan(request, runs, asked), flush=True)
        return []

    finished, held, missing = sorted_out(runs)
    elsewhere = f", {len(held)} in training by another process" if held else ""
    print(
        f"{asked} runs asked for, {len(runs)} different ones: {len(finished)} finished before"
        f"{elsewhere}, {len(missing)} to train",
        flush=True,
    )
    unfit: set[str] = set()
    for reason, alike in without_data(missing).items():
        unfit |= {run.run_id for run in alike}
        if len(unfit) == len(missing):
            raise UserError(f"{reason}: no run can be trained without it")
        cli.say(f"{reason}: {len(alike)} runs cannot be trained without it")
    todo = [run for run in missing if run.run_id not in unfit]
    jobs = jobs_for(todo, held)
    new = NewFiles(job.run for job in jobs)

    def so_far() -> tuple[dict[str, Outcome], dict[str, Outcome]]:
        """Return the results of the sweep's runs, and those from before or of other processes."""
        ended = {run.run_id: result for run in todo if (result := new.result(run))}
        others = {run.run_id: result for run in held if (result := result_of(run))}
        return ended, finished | others

    launcher = Plugins.instance().instantiate_launcher(context, task, config)
    try:
        with nullcontext() if config.dry_run else SweepProgress(jobs, new):
            returned = launch(launcher, jobs, limits, new)
    except KeyboardInterrupt:
        ended, before = so_far()
        counts = counted(len(runs), [*ended.values()], [*before.values()])
        print(f"sweep: {counts}; to resume: {command()}", flush=True)
        raise
    returns = list(returned.values())
    if config.dry_run:
        if failures := sum(job.status is JobStatus.FAILED for job in returns):
            raise SweepFailed(f"sweep: {failures} of {len(jobs)} would fail; see above")
        return returns

    reasons: dict[str, str] = {}
    stopped: dict[str, OutOfTime] = {}
    for job in jobs:
        run_id, folder = job.run.run_id, job.run.settings.run_folder
        if run_id not in returned or new.has(job.run, RESULT):
            continue
        job_return = returned[run_id]
        error = job_return._return_value if job_return.status is JobStatus.FAILED else None
        if isinstance(error, OutOfTime):
            stopped[run_id] = error
        elif not in_progress(folder):  # another process may have started it
            reasons[run_id] = str(error or "exited without writing a result")
            if not new.has(job.run, FAILURE):
                record_failure(folder, reasons[run_id])
    ended, before = so_far()
    diverged = {
        run_id: str(Diverged(result))
        for run_id, result in (before | ended).items()
        if result["status"] == "diverged"
    }
    saved = {run_id for run_id, error in stopped.items() if not isinstance(error, NotStarted)}
    summary = "sweep: " + counted(
        len(runs),
        [*ended.values()],
        [*before.values()],
        failed=len(reasons.keys() & runs.keys()) + len(unfit),
        interrupted=len(saved & runs.keys()),
    )
    if reasons or unfit or diverged or (stopped and not limits):
        lines = [f"{run_id}: {reason}" for run_id, reason in (reasons | diverged).items()]
        raise SweepFailed("\n".join([*lines, f"{summary}; to resume: {command()}"]))
    if limits and len(ended) < len(todo):
        summary += f"; budget={config.budget} is over, rerun the same command to resume"
    print(summary, flush=True)
    return returns


def jobs_for(runs: Sequence[Run], held: Sequence[Run]) -> list[Job]:
    """Return the jobs that train runs, in their order.

    Args:
        runs: to train.
        held: that another process trains; one that others start from is waited for.
    """
    if not runs or not all(uses_prefixes(r.settings) and not r.settings.dry_run for r in runs):
        return [Job(run) for run in runs]
    done = {run.run_id: epochs_saved(run.settings.run_folder) for run in runs}
    jobs = arranged([*held, *runs], done, is_stored)
    elsewhere = {run.run_id for run in held}
    return [job for job in jobs if job.run.run_id not in elsewhere or job.keep]


def command() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["python", *(cli.argv or sys.argv)])
