"""The Hydra sweeper: train the requested runs that are not finished, with any launcher.

    python train.py -m table=t1a,t1c model=cnn13 seed=0,1
    python train.py -m averaging=none,phasewise seed=0,1,2

Equal runs are trained once, and finished runs are skipped. If a run fails, the other runs continue.
Rerun the same command to resume an interrupted sweep.
"""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import product

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
    Run,
    cell_runs,
    override_values,
    parse_overrides,
    read_request,
    unique_runs,
)
from phaseavg.sweep.composing import Compose, cached, composer, config_folders
from phaseavg.sweep.cpu_time import cpu_notice
from phaseavg.sweep.epoch_times import checkpoint_epochs, parse_duration
from phaseavg.sweep.launch import launch
from phaseavg.sweep.order import arrange_jobs
from phaseavg.sweep.outcomes import (
    FAILURE,
    NewFiles,
    Outcome,
    classify_runs,
    count_outcomes,
    runs_without_data,
)
from phaseavg.sweep.progress import SweepProgress

SLOW_CELLS = 20
"""The number of cells whose composition takes seconds."""


def plain_runs(overrides: list[Override], compose: Compose) -> Iterator[Run]:
    """Yield the runs of all combinations of the values of `overrides`."""
    composed: dict[tuple[str, ...], DictConfig] = {}
    values = [[f"{o.get_key_element()}={v}" for v in override_values(o)] for o in overrides]
    for combination in product(*values):
        rest = tuple(o for o in combination if not o.startswith("seed="))
        if rest not in composed:  # composing is slow, setting a seed is fast
            composed[rest] = compose(rest)
        config = composed[rest]
        for seed in parse_overrides(o for o in combination if o.startswith("seed=")):
            config.seed = seed.value()
        yield Run(list(combination), check(config))


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
        if request.tables:
            requested = list(cell_runs(request.cells, request.seeds, compose_cached))
        else:
            requested = list(plain_runs(parse_overrides(request.common, loader), compose))
    runs, count = unique_runs(requested), len(requested)
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
    done = {run.run_id: checkpoint_epochs(run.settings.run_folder) for run in todo}
    jobs = arrange_jobs(todo, done)
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


def resume_hint(config: DictConfig) -> str:
    """Say how to resume the sweep: by the command line as typed."""
    if config.rerun is True:
        return "to resume the interrupted runs, leave out rerun=true, which repeats all runs"
    return "to resume: " + shlex.join(["python", *(cli.argv or sys.argv)])
