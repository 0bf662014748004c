"""The Hydra sweeper: runs what is asked for and is not finished, under any launcher.

    python train.py -m table=1a,1c model=cnn13 seed=0,1
    python train.py -m averaging=none,phasewise seed=0,1,2

Equal runs are one, finished ones are left out, a run that fails stops no other, and the same
command goes on wherever it was cut.
"""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import prod

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from phaseavg import cli
from phaseavg.config import check
from phaseavg.errors import Diverged, OutOfTime, SweepFailed, UserError
from phaseavg.runs.folder import in_progress, record_failure
from phaseavg.runs.store import GIGABYTE
from phaseavg.sweep.budget import Work, affordable, in_words, seconds_of
from phaseavg.sweep.cells import (
    ONE_VALUE,
    Compose,
    Composed,
    Request,
    Run,
    parsed,
    read_request,
    runs_of,
    values_of,
)
from phaseavg.sweep.launch import Launch
from phaseavg.sweep.outcomes import counted, outcomes, result_of, sorted_out, stamp_of, without_data
from phaseavg.sweep.progress import SweepProgress
from phaseavg.sweep.rates import Rates, epochs_done, epochs_there
from phaseavg.sweep.shared import Wave, arranged, neighbours
from phaseavg.training.sharing import shares, store_of

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
    request: Request, compose: Compose, loader: ConfigLoader, composed: Composed
) -> tuple[dict[str, Run], int]:
    """Return the runs of a request by run id, and how many it asks for, equal ones counted each."""
    if request.tables:
        asked = sum(len(request.seeds[cell.table]) for cell in request.cells)
        return runs_of(request.cells, request.seeds, compose, composed), asked
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
        SweepFailed: once all is over, if a run failed or diverged.
    """
    began = time.time()
    if missing := sorted({*ONE_VALUE} - {*config}):
        raise UserError(f"{missing[0]}: is missing")
    if not isinstance(config.plan, bool):
        raise UserError(f"plan={config.plan}: choices: true, false")
    budget = None if config.budget is None else seconds_of(config.budget)
    compose = composer(context, config)
    options = context.config_loader.get_group_options("table")
    loader = context.config_loader
    request = read_request(arguments, options, compose, loader)
    if len(request.cells) > MANY and not config.plan:
        print(f"composing {len(request.cells)} cells …", flush=True)
    composed: Composed = {}
    runs, asked = asked_for(request, compose, loader, composed)
    if config.plan:
        from phaseavg.sweep.plan import plan  # needs what a bare host that trains may lack

        print(plan(request, runs, asked, result_of, budget), flush=True)
        return []

    there, held, missing = sorted_out(runs)
    elsewhere = f", {len(held)} in training by another process" if held else ""
    print(
        f"{asked} runs asked for, {len(runs)} different ones: {len(there)} there already"
        f"{elsewhere}, {len(missing)} to train",
        flush=True,
    )
    unfit: set[str] = set()
    for reason, some in without_data(missing).items():
        unfit |= {run.settings.run_id for run in some}
        if len(unfit) == len(missing):
            raise UserError(f"{reason}: no run can be trained without it")
        cli.say(f"{reason}: {len(some)} runs cannot be trained without it")
    missing = [run for run in missing if run.settings.run_id not in unfit]
    settings = missing[0].settings if missing else None
    sharing = settings is not None and shares(settings) and not settings.dry_run
    others: dict[str, Run] = {}
    if sharing:
        near = neighbours(request, options, settings.share.carry, compose, composed)
        others = {i: run for i, run in near.items() if i not in runs and not result_of(run)}
        for run_id in near.keys() & runs.keys():  # which may be part of tables not asked for
            runs[run_id].cells += near[run_id].cells

    launch = Launch(context, task, config, missing)
    deadline = None if budget is None else began + budget
    try:
        # With a budget as long as more fits into what is left of it: launchers work side by side.
        while todo := launch.not_begun():
            if deadline is not None:
                todo = within(deadline - time.time(), todo, sharing)
            if not todo:
                break
            later = {r.settings.run_id: r for r in launch.not_begun() if r not in todo}
            waves = waves_of(todo, others | later) if sharing else [Wave(runs=todo)]
            called = "sweep" if deadline is None else "of these"
            with nullcontext() if config.dry_run else SweepProgress(todo, sharing, called):
                launch.run(waves, deadline)
        trouble = ""
    except KeyboardInterrupt:
        counts = counted(outcomes(missing, launch.stamps), there, held)
        print(f"sweep: {counts}; {command()} goes on", flush=True)
        raise
    except UserError:  # of the store, say: nothing has been launched with it
        raise
    except Exception as error:  # of the launcher: one of its processes was killed, for example
        trouble = f"the launcher failed: {' '.join(repr(error).split())}"
        if [stamp_of(run) for run in missing] == launch.stamps:
            raise SweepFailed(f"{trouble}; nothing was run") from error

    if config.dry_run:
        if failures := len(launch.errors):
            raise SweepFailed(f"sweep: {failures} of {len(missing)} would fail; see above")
        return launch.returned

    if settings is not None and sharing and launch.trunks:
        store = store_of(settings)
        print(
            f"{store.folder}: {store.used() / GIGABYTE:.3g} GB for runs to go on from; removing it "
            "costs epochs, nothing else",
            flush=True,
        )

    reasons = {}
    results = outcomes(missing, launch.stamps)
    for run, result, stamp in zip(missing, results, launch.stamps, strict=True):
        run_id, folder = run.settings.run_id, run.settings.run_folder
        error = launch.errors.get(run_id)
        if (run_id not in launch.begun and not trouble) or isinstance(error, OutOfTime):
            continue
        if result is None and not in_progress(folder):  # which another process may have begun
            reasons[run_id] = str(error or trouble or "it did not end as runs do")
            if stamp_of(run)["failure.json"] == stamp["failure.json"]:
                record_failure(folder, reasons[run_id])
    ended = there | {r.settings.run_id: o for r, o in zip(missing, results, strict=True) if o}
    diverged = {i: str(Diverged(o)) for i, o in ended.items() if o["status"] == "diverged"}
    failed = len(reasons) + len(unfit)
    summary = f"sweep: {counted([*results, *[None] * len(unfit)], there, held, failed=failed)}"
    if failed or diverged:
        lines = [f"{run_id}: {reason}" for run_id, reason in (reasons | diverged).items()]
        raise SweepFailed("\n".join([*lines, f"{summary}; to go on: {command()}"]))
    if budget is not None and None in results:
        summary += f"; no more fits into budget={config.budget}, the same command goes on"
    print(summary, flush=True)
    return launch.returned


def waves_of(runs: Sequence[Run], others: Mapping[str, Run]) -> list[Wave]:
    """Return the waves of runs that share what they have in common, and write down its jobs."""
    done = {run.settings.run_id: epochs_done(run.settings.run_folder) for run in runs}
    waves = arranged(runs, others, done)
    for wave in waves:
        for trunk, _ in wave.trunks:
            trunk.write(store_of(runs[0].settings))
    return waves


def within(seconds: float, runs: Sequence[Run], sharing: bool) -> list[Run]:
    """Return those of some runs to train next if there is so much time, the cheapest cells first.

    They take half of it, or are one bundle: what follows is chosen by what they will really have
    taken, and no time is spent on beginnings of what has no time to end.
    """
    if seconds <= 0:
        return []
    by_id = {run.settings.run_id: run for run in runs}
    work = Work(by_id, epochs_there(by_id), sharing)
    found = affordable(by_id, work, Rates(runs), seconds)
    total = sum(len(run_ids) for run_ids, _ in found)
    chosen, spent = [], 0.0
    for run_ids, cost in found:
        if chosen and spent + cost > seconds / 2:
            break
        chosen += run_ids
        spent += cost
    print(
        f"{total} of {len(runs)} runs fit into the {in_words(seconds)} that are left; next are "
        f"{len(chosen)} of them, about {in_words(spent)}",
        flush=True,
    )
    return [by_id[run_id] for run_id in chosen]


def command() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["python", *(cli.typed or sys.argv)])
