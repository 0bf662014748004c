"""The Hydra sweeper: runs what is asked for and is not finished, under any launcher.

    python train.py -m table=1a,1c model=cnn13 seed=0,1
    python train.py -m averaging=none,phasewise seed=0,1,2

Equal runs are one, finished ones are left out, a run that fails stops no other, and the same
command goes on wherever it was cut.
"""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from phaseavg.config import check
from phaseavg.errors import Diverged, SweepFailed
from phaseavg.runs.folder import in_progress, lacking, read_failure, read_result, record_failure
from phaseavg.sweep.cells import Compose, Request, Run, parsed, read_request, runs_of, values_of
from phaseavg.sweep.plan import plan


def composer(context: HydraContext, master: DictConfig) -> Compose:
    """Return what composes a run's config as the launchers do."""

    def compose(overrides: Sequence[str]) -> DictConfig:
        config = context.config_loader.load_sweep_config(master, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config

    return compose


def plain_runs(overrides: Sequence[str], compose: Compose) -> dict[str, Run]:
    """Return the runs of all combinations of the values of `overrides`, by run id."""
    runs: dict[str, Run] = {}
    (combinations,) = BasicSweeper.split_arguments(parsed(overrides), max_batch_size=None)
    for combination in combinations:
        settings = check(compose(combination))
        runs.setdefault(settings.run_id, Run(combination, settings))
    return runs


def asked_for(request: Request, compose: Compose) -> tuple[dict[str, Run], int]:
    """Return the runs of a request by run id, and how many it asks for, equal ones counted each."""
    if request.tables:
        print(f"composing {len(request.cells)} cells …", flush=True)
        asked = sum(len(request.seeds[cell.table]) for cell in request.cells)
        return runs_of(request.cells, request.seeds, compose), asked
    asked = 1
    for override in parsed(request.common):
        asked *= len(values_of(override))
    return plain_runs(request.common, compose), asked


def result_of(run: Run) -> dict[str, Any] | None:
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
    request = read_request(arguments, options, compose)
    runs, asked = asked_for(request, compose)
    if config.plan:
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
    started, returned = time.time(), []
    try:
        if jobs:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=task, config=config
            )
            returned = launcher.launch(jobs, initial_job_idx=0)
        trouble = "it did not end as runs do"
    except KeyboardInterrupt:
        print(f"sweep: {counted(missing, there, held)}; {command()} goes on", flush=True)
        raise
    except Exception as error:  # of the launcher: one of its processes was killed, for example
        trouble = f"the launcher failed: {' '.join(repr(error).split())}"
    if config.dry_run:
        return returned

    raised = [job._return_value if job.status is JobStatus.FAILED else None for job in returned]
    for run, error in zip_longest(missing, raised):
        if not result_of(run):
            record_failure(run.settings.run_folder, str(error or trouble), started)
    failed = [(run.settings.run_id, reason) for run in runs.values() if (reason := failure(run))]
    summary = f"sweep: {counted(missing, there, held)}"
    if failed:
        lines = [f"{run_id}: {reason}" for run_id, reason in failed]
        raise SweepFailed("\n".join([*lines, f"{summary}; to go on: {command()}"]))
    print(summary, flush=True)
    return returned


def sorted_out(runs: Mapping[str, Run]) -> tuple[list[Run], list[Run], list[Run]]:
    """Return the runs that have ended, those that another process trains, and those to train."""
    there, held, missing = [], [], []
    for run_id, run in runs.items():
        result = None if run.settings.force else result_of(run)
        if result:
            there.append(run)
            if lacks := lacking(run.settings.run_folder, result, run.settings):
                print(f"{run_id}: finished before, {lacks} (force=true repeats it)", flush=True)
        elif in_progress(run.settings.run_folder):
            held.append(run)
            print(f"{run_id}: another process is training it", flush=True)
        else:
            missing.append(run)
    return there, held, missing


def failure(run: Run) -> str | None:
    """Return why a run has no errors to show; None if it has some, or is still to be trained."""
    result = result_of(run)
    if result:
        return str(Diverged(result)) if result["status"] == "diverged" else None
    return read_failure(run.settings.run_folder)


def counted(missing: Sequence[Run], there: Sequence[Run], held: Sequence[Run]) -> str:
    """Return in words how many of a sweep's runs have ended how, as the disk has it."""
    results = [result_of(run) for run in missing]
    statuses = Counter("left" if result is None else result["status"] for result in results)
    failed = sum(
        result is None and read_failure(run.settings.run_folder) is not None
        for run, result in zip(missing, results, strict=True)
    )
    diverged = sum(result_of(run)["status"] == "diverged" for run in there)
    parts = {
        "finished": statuses["finished"],
        "there already": len(there),
        "of these diverged": diverged,
        "diverged": statuses["diverged"],
        "failed": failed,
        "not run": statuses["left"] - failed,
        "in training by another process": len(held),
    }
    return ", ".join(
        f"{n} {what}" for what, n in parts.items() if n or what in ("finished", "there already")
    )


def command() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["python", *sys.argv])
