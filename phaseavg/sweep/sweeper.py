"""The Hydra sweeper: runs what is asked for and is not finished, under any launcher.

    python train.py -m table=t1a,t1c model=cnn13 seed=0,1
    python train.py -m averaging=none,phasewise seed=0,1,2

Equal runs are one, finished ones are left out, a run that fails stops no other, and the same
command goes on wherever it was cut.
"""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import prod

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from phaseavg import cli
from phaseavg.config import check
from phaseavg.errors import Diverged, NotStarted, OutOfTime, SweepFailed, UserError
from phaseavg.runs.folder import in_progress, record_failure
from phaseavg.sweep.cells import (
    ONE_VALUE,
    Request,
    Run,
    parsed,
    read_request,
    runs_of,
    values_of,
)
from phaseavg.sweep.composing import Compose, cached, composer, config_folders
from phaseavg.sweep.launch import Launch
from phaseavg.sweep.order import Job, arranged, is_stored
from phaseavg.sweep.outcomes import (
    Outcome,
    Stamp,
    counted,
    outcomes,
    result_of,
    sorted_out,
    stamp_of,
    without_data,
)
from phaseavg.sweep.progress import SweepProgress
from phaseavg.sweep.rates import epochs_saved, rates_for, seconds_of, workload
from phaseavg.training.sharing import shares

MANY = 20
"""Cells that take some seconds to compose."""


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
        run = Run(combination, settings)
        runs.setdefault(run.run_id, run)
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
        UserError: if what is asked for does not exist, or the data of all runs is missing.
        SweepFailed: at the end, if a run failed or diverged.
    """
    began = time.time()
    if missing := sorted({*ONE_VALUE} - {*config}):
        raise UserError(f"{missing[0]}: is missing")
    if not isinstance(config.plan, bool):
        raise UserError(f"plan={config.plan}: choices: true, false")
    budget = None if config.budget is None else seconds_of(config.budget)
    loader, compose = context.config_loader, composer(context, config)
    folders, name = config_folders(context, config), config.hydra.job.config_name
    with cached(compose, folders, name) as compose_cached:
        options = loader.get_group_options("table")
        request = read_request(arguments, options, compose_cached, loader)
        if len(request.cells) > MANY and not config.plan:
            print(f"composing {len(request.cells)} cells …", flush=True)
        runs, asked = asked_for(request, compose_cached if request.tables else compose, loader)
    if config.plan:
        from phaseavg.sweep.plan import plan  # needs what a bare host that trains may lack

        print(plan(request, runs, asked), flush=True)
        return []

    finished, held, missing_runs = sorted_out(runs)
    elsewhere = f", {len(held)} in training by another process" if held else ""
    print(
        f"{asked} runs asked for, {len(runs)} different ones: {len(finished)} finished before"
        f"{elsewhere}, {len(missing_runs)} to train",
        flush=True,
    )
    unfit: set[str] = set()
    for reason, some in without_data(missing_runs).items():
        unfit |= {run.run_id for run in some}
        if len(unfit) == len(missing_runs):
            raise UserError(f"{reason}: no run can be trained without it")
        cli.say(f"{reason}: {len(some)} runs cannot be trained without it")
    todo = [run for run in missing_runs if run.run_id not in unfit]
    jobs = jobs_for(todo, held)
    launch = Launch(context, task, config, jobs)
    try:
        with nullcontext() if config.dry_run else SweepProgress(jobs):
            launch.run(timing(jobs, began, budget))
    except KeyboardInterrupt:
        finished, held = counted_anew(finished, held)
        counts = counted(outcomes(todo, stamps_of(todo, launch)), finished, held)
        print(f"sweep: {counts}; to resume: {command()}", flush=True)
        raise

    if config.dry_run:
        if failures := len(launch.errors):
            raise SweepFailed(f"sweep: {failures} of {len(jobs)} would fail; see above")
        return launch.returned

    reasons: dict[str, str] = {}
    interrupted: set[str] = set()
    stopped = False
    for job, stamp in zip(jobs, launch.stamps, strict=True):
        run_id, folder = job.run.run_id, job.run.settings.run_folder
        error = launch.errors.get(run_id)
        (result,) = outcomes([job.run], [stamp])
        if result is not None or run_id not in launch.begun:
            continue
        if isinstance(error, OutOfTime):
            stopped = True
            if not isinstance(error, NotStarted):
                interrupted.add(run_id)
        elif not in_progress(folder):  # another process may have started it
            reasons[run_id] = str(error or "exited without writing a result")
            if stamp_of(job.run)["failure.json"] == stamp["failure.json"]:
                record_failure(folder, reasons[run_id])
    results = outcomes(todo, stamps_of(todo, launch))
    finished, held = counted_anew(finished, held)
    ended = finished | {r.run_id: o for r, o in zip(todo, results, strict=True) if o}
    diverged = {i: str(Diverged(o)) for i, o in ended.items() if o["status"] == "diverged"}
    asked_runs = {run.run_id for run in todo}
    counts = counted(
        [*results, *[None] * len(unfit)],
        finished,
        held,
        failed=len(reasons.keys() & asked_runs) + len(unfit),
        interrupted=len(interrupted & asked_runs),
    )
    summary = f"sweep: {counts}"
    if reasons or unfit or diverged or (stopped and budget is None):
        lines = [f"{run_id}: {reason}" for run_id, reason in (reasons | diverged).items()]
        raise SweepFailed("\n".join([*lines, f"{summary}; to resume: {command()}"]))
    if budget is not None and None in results:
        summary += f"; budget={config.budget} is over, rerun the same command to resume"
    print(summary, flush=True)
    return launch.returned


def jobs_for(runs: Sequence[Run], held: Sequence[Run]) -> list[Job]:
    """Return the jobs that train runs, in their order.

    Args:
        runs: to train.
        held: that another process trains; one that others start from is waited for.
    """
    if not runs or not all(shares(r.settings) and not r.settings.dry_run for r in runs):
        return [Job(run) for run in runs]
    done = {run.run_id: epochs_saved(run.settings.run_folder) for run in runs}
    jobs = arranged([*held, *runs], done, is_stored)
    elsewhere = {run.run_id for run in held}
    return [job for job in jobs if job.run.run_id not in elsewhere or job.keep]


def counted_anew(
    finished: dict[str, Outcome], held: Sequence[Run]
) -> tuple[dict[str, Outcome], list[Run]]:
    """Return both, with the runs that another process has finished meanwhile among the first."""
    results = {run.run_id: result_of(run) for run in held}
    done = {run_id: result for run_id, result in results.items() if result}
    return finished | done, [run for run in held if run.run_id not in done]


def stamps_of(runs: Sequence[Run], launch: Launch) -> list[Stamp]:
    """Return when the files of runs had been written before they were launched."""
    stamps = zip(launch.jobs, launch.stamps, strict=True)
    by_id = {job.run.run_id: stamp for job, stamp in stamps}
    return [by_id[run.run_id] for run in runs]


def timing(jobs: Sequence[Job], began: float, budget: float | None) -> Callable[[Job], list[str]]:
    """Return what returns the overrides that keep a job within a budget.

    A job stops at the deadline, and does not start if it cannot end by then at the rate of finished
    runs.

    Args:
        jobs: of the sweep.
        began: when the sweep began, in seconds since 1970.
        budget: in seconds; None: as long as it takes.
    """
    if budget is None:
        return lambda job: []
    deadline = began + budget
    rates = rates_for([job.run.settings for job in jobs])

    def overrides(job: Job) -> list[str]:
        rate = rates.get(workload(job.run.settings.record()))
        needed = job.epochs * rate.seconds if rate else 0.0
        return [f"deadline={deadline:.0f}", f"start_by={deadline - needed:.0f}"]

    return overrides


def command() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["python", *(cli.typed or sys.argv)])
