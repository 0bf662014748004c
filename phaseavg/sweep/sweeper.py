"""The Hydra sweeper: train the requested runs that are not finished, with any launcher.

    python train.py -m table=t1a,t1c model=cnn13 seed=0,1
    python train.py -m averaging=none,phasewise seed=0,1,2

Equal runs are trained once, and finished runs are skipped. If a run fails, the other runs continue.
Rerun the same command to resume an interrupted sweep.
"""

import math
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

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
from phaseavg.processes import launched
from phaseavg.runs.finished import find_result
from phaseavg.runs.folder import in_progress, record_failure
from phaseavg.runs.record import RESULT
from phaseavg.sweep.cells import (
    Request,
    Run,
    cell_runs,
    override_values,
    parse_overrides,
    read_request,
)
from phaseavg.sweep.composing import Compose, cached, composer, config_folders
from phaseavg.sweep.cpu_time import cpu_notice
from phaseavg.sweep.epoch_times import checkpoint_epochs, parse_duration
from phaseavg.sweep.launch import launch
from phaseavg.sweep.order import Job, arrange_jobs
from phaseavg.sweep.outcomes import (
    FAILURE,
    NewFiles,
    Outcome,
    classify_runs,
    count_outcomes,
    runs_without_data,
)
from phaseavg.sweep.progress import SweepProgress
from phaseavg.training.sharing import uses_prefixes

SLOW_CELLS = 20
"""The number of cells whose composition takes seconds."""


def plain_runs(overrides: list[Override], compose: Compose) -> dict[str, Run]:
    """Return the runs of all combinations of the values of `overrides`, by run id."""
    runs: dict[str, Run] = {}
    composed: dict[tuple[str, ...], DictConfig] = {}
    (combinations,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    for combination in combinations:
        rest = tuple(o for o in combination if not o.startswith("seed="))
        if rest not in composed:  # composing is slow, setting a seed is fast
            composed[rest] = compose(rest)
        config = composed[rest]
        for seed in parse_overrides(o for o in combination if o.startswith("seed=")):
            config.seed = seed.value()
        run = Run(combination, check(config))
        first = runs.setdefault(run.run_id, run)
        for key, value in run.settings:
            if value != getattr(first.settings, key):
                raise UserError(
                    f"{key}: the requested values give the same run id, {run.run_id}; start a "
                    "sweep for each value, with a runs_dir of its own"
                )
    return runs


def collect_runs(
    request: Request, compose: Compose, loader: ConfigLoader
) -> tuple[dict[str, Run], int]:
    """Return the unique runs of a request, by run id, and the number of requested runs."""
    if request.tables:
        count = sum(len(request.seeds[cell.table]) for cell in request.cells)
        return cell_runs(request.cells, request.seeds, compose), count
    overrides = parse_overrides(request.common, loader)
    count = math.prod(len(override_values(override)) for override in overrides)
    return plain_runs(overrides, compose), count


def sweep(
    arguments: list[str], context: HydraContext, task: TaskFunction, config: DictConfig
) -> Sequence[JobReturn]:
    """Train the runs that `arguments` request and that are not finished.

    Args:
        arguments: overrides. In a table's sweep, `table` and `NARROWING` may have several values;
            in a plain sweep, any override.
        context: the Hydra context, which composes configs.
        task: trains a run.
        config: the config, composed without overrides that have several values.

    Raises:
        UserError: if a requested option does not exist, two requested runs have the same id but
            other settings, or the data of all runs is missing.
        SweepFailed: at the end, if a run failed or diverged.
    """
    if launched():
        raise UserError("-m: torchrun trains a single run; sweeps have hydra/launcher=local")
    if config.hydra.job.chdir:
        raise UserError("hydra.job.chdir=true: runs are written to runs_dir; choices: false")
    if not isinstance(config.plan, bool):
        raise UserError(f"plan={config.plan}: choices: true, false")
    budget = config.budget
    deadline = None if budget is None else round(time.time() + parse_duration(budget))
    limits = [] if deadline is None else [f"deadline={deadline}"]
    loader, compose = context.config_loader, composer(context, config)
    folders, name = config_folders(context, config), config.hydra.job.config_name
    with cached(compose, folders, name) as compose_cached:
        options = loader.get_group_options("table")
        request = read_request(arguments, options, compose_cached, loader)
        if len(request.cells) > SLOW_CELLS and not config.plan:
            print(f"composing {len(request.cells)} cells …", flush=True)
        runs, count = collect_runs(request, compose_cached if request.tables else compose, loader)
    if any(run.settings.share.prefix or run.settings.share.guests for run in runs.values()):
        raise UserError("share.prefix, share.guests: a sweep sets them itself; leave them out")
    if config.plan:
        from phaseavg.sweep.plan import plan  # imports packages that training does not need

        print(plan(request, runs, count), flush=True)
        return []

    finished, held, missing = classify_runs(runs)
    elsewhere = f", {len(held)} training in another process" if held else ""
    print(
        f"{count} runs requested, {len(runs)} unique: {len(finished)} finished before"
        f"{elsewhere}, {len(missing)} to train",
        flush=True,
    )
    no_data: set[str] = set()
    for reason, affected in runs_without_data(missing).items():
        no_data |= {run.run_id for run in affected}
        if len(no_data) == len(missing):
            raise UserError(f"{reason}: all runs need this data set")
        cli.say(f"{reason}: skipping the {len(affected)} runs that need this data set")
    todo = [run for run in missing if run.run_id not in no_data]
    jobs = jobs_for(todo)
    new = NewFiles(job.run for job in jobs)
    here = config.hydra.runtime.choices["hydra/launcher"] != "slurm"
    if request.tables and here and not config.dry_run and (notice := cpu_notice(jobs)):
        print(notice, flush=True)

    def collect_results() -> tuple[dict[str, Outcome], dict[str, Outcome]]:
        """Return the results of this sweep, and the results of earlier or other processes."""
        ended = {run.run_id: result for run in todo if (result := new.result(run))}
        others = {run.run_id: found[1] for run in held if (found := find_result(run.settings))}
        return ended, finished | others

    launcher = Plugins.instance().instantiate_launcher(context, task, config)
    try:
        with nullcontext() if config.dry_run else SweepProgress(jobs, new):
            returned = launch(launcher, jobs, limits, new)
    except KeyboardInterrupt:
        ended, before = collect_results()
        counts = count_outcomes(len(runs), [*ended.values()], [*before.values()])
        print(f"sweep: {counts}; {resume_hint(config)}", flush=True)
        raise
    returns = list(returned.values())
    if config.dry_run:
        if failures := sum(job.status is JobStatus.FAILED for job in returns):
            raise SweepFailed(f"sweep: {failures} of {len(jobs)} jobs would fail; see above")
        return returns

    reasons: dict[str, str] = {}
    stopped: dict[str, OutOfTime] = {}
    for job in jobs:
        name = f"prefix {job.run.run_id}" if job.is_prefix else job.run.run_id
        folder = job.run.settings.run_folder
        if folder not in returned or new.has(job.run, RESULT):
            continue
        job_return = returned[folder]
        error = job_return._return_value if job_return.status is JobStatus.FAILED else None
        if isinstance(error, OutOfTime):
            stopped[name] = error
        elif error is None or (job.is_prefix and isinstance(error, Diverged)):
            continue  # a prefix has no result; if it diverged, its runs diverge, too
        elif not in_progress(folder) and not new.has(job.run, RESULT):
            # No other process trains this run, or has just finished it.
            reasons[name] = str(error)
            if not new.has(job.run, FAILURE):
                record_failure(folder, reasons[name])
    ended, before = collect_results()
    diverged = {
        run_id: str(Diverged(result))
        for run_id, result in (before | ended).items()
        if result["status"] == "diverged"
    }
    saved = {run_id for run_id, error in stopped.items() if not isinstance(error, NotStarted)}
    summary = "sweep: " + count_outcomes(
        len(runs),
        [*ended.values()],
        [*before.values()],
        failed=len(reasons.keys() & runs.keys()) + len(no_data),
        interrupted=len(saved & runs.keys()),
    )
    late = deadline is not None and time.time() >= deadline
    if reasons or no_data or diverged or (stopped and not late):
        lines = [f"{run_id}: {reason}" for run_id, reason in (reasons | diverged).items()]
        raise SweepFailed("\n".join([*lines, f"{summary}; {resume_hint(config)}"]))
    if late and len(ended) < len(todo):
        summary += f"; budget={budget} is used up; {resume_hint(config)}"
    print(summary, flush=True)
    return returns


def jobs_for(runs: Sequence[Run]) -> list[Job]:
    """Return the jobs that train runs and their shared prefixes, in training order."""
    if not all(uses_prefixes(run.settings) and not run.settings.dry_run for run in runs):
        return [Job(run) for run in runs]
    return arrange_jobs(
        runs, {run.run_id: checkpoint_epochs(run.settings.run_folder) for run in runs}
    )


def resume_hint(config: DictConfig) -> str:
    """Say how to resume the sweep: by the command line as typed."""
    if config.rerun is True:
        return "to resume the interrupted runs, leave out rerun=true, which repeats all runs"
    return "to resume: " + shlex.join(["python", *(cli.argv or sys.argv)])
