"""Train one network phase by phase; `-m` trains a sweep of them.

    python train.py dataset=cifar100 model=resnet34 averaging=phasewise seed=0
    python train.py -m preset=demo averaging=none,phasewise seed=0,1,2
    python train.py --help

A run is its recipe: the same command continues it if it was cut, and returns its result if not.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from phaseavg.cli import command_line, reporting
from phaseavg.config import Settings, check
from phaseavg.errors import Diverged
from phaseavg.runs.folder import RunFolder, finished_before
from phaseavg.runs.identity import NUMERICS_VERSION
from phaseavg.runs.provenance import peak_memory_bytes, provenance, reset_peak_memory
from phaseavg.runs.result import cost, errors, summary
from phaseavg.targets import build
from phaseavg.training.execution import prepare
from phaseavg.training.loop import train
from phaseavg.training.parts import assemble
from phaseavg.training.preview import opening, preview
from phaseavg.training.progress import TrainingProgress
from phaseavg.training.sharing import inherited, restore
from phaseavg.training.trunk import train_trunk

CONF = Path(__file__).with_name("conf")


def run(settings: Settings) -> dict[str, Any]:
    """Train one run, unless it is finished, and return its result."""
    for found in settings.places:
        if not settings.force and (result := finished_before(found, settings)):
            return result

    settings, device = prepare(settings)
    reset_peak_memory(device)
    data, schedule, state = assemble(settings, device)
    if settings.dry_run:
        print(preview(settings, data, schedule, state), flush=True)
        return {"run_id": settings.run_id, "status": "dry run"}

    with RunFolder(settings.run_folder) as folder:
        if settings.force:
            folder.reopen()
        elif result := finished_before(folder.path, settings):  # meanwhile
            return result
        folder.write_config(settings.record())
        restore(state, folder, settings, device)
        state.continue_with(provenance(device, settings.execution.model_dump()))
        folder.write_metrics(state.history)
        print(f"{folder.path}: {opening(settings, data, schedule, state)}", flush=True)
        tracking = build(
            "tracking",
            settings.tracking,
            recipe=settings.recipe(),
            config=settings.record() | state.provenance[-1],
            history=state.history,
            offered={"record": settings.record(), "cells": settings.cells},
        )
        result = {"run_id": settings.run_id, "status": "finished", "watch": settings.watch}
        result |= {"numerics_version": NUMERICS_VERSION, "snapshots": settings.snapshots}
        with tracking:
            try:
                with TrainingProgress(schedule, state) as progress:
                    train(state, data, schedule, settings, folder, progress, tracking)
                result |= errors(state.history, settings.watch)
            except Diverged as outcome:
                result |= {"status": "diverged", **outcome.outcome}
            result |= cost(state.history) | inherited(state)
            result |= {"peak_memory_bytes": peak_memory_bytes(device)}
            result["provenance"] = state.provenance
            result["date"] = datetime.now(UTC).date().isoformat()
            tracking.finish(result)
        if settings.weights == "final":
            size = folder.write_weights(state.model.state_dict())
            print(f"{folder.path}/weights.safetensors: {size / 1e6:.1f} MB")
        folder.finish(result)
    print(summary(result), flush=True)
    return result


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
@reporting
def main(config: DictConfig) -> float | None:
    """Return the test error in % of the run that `config` describes."""
    settings = check(config)
    result = train_trunk(settings) if settings.share.trunk else run(settings)
    if result["status"] == "diverged":
        raise Diverged(result)
    return result.get("test_error")


if __name__ == "__main__":
    sys.exit(command_line(main, CONF))
