"""Train one network phase by phase; `-m` trains a sweep of them.

    python train.py dataset=cifar100 model=resnet34 averaging=phasewise seed=0
    python train.py -m preset=demo averaging=none,phasewise seed=0,1,2
    python train.py --help

The same command resumes an interrupted run, and returns the result of a finished run.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from phaseavg.cli import command_line, report_errors
from phaseavg.config import Settings, check, recorded_overrides
from phaseavg.errors import Diverged
from phaseavg.identity import NUMERICS_VERSION
from phaseavg.processes import joined, on_first
from phaseavg.runs.finished import finished_before
from phaseavg.runs.folder import RunFolder
from phaseavg.runs.prefixes import prefix_settings
from phaseavg.runs.provenance import own_code, peak_memory_bytes, provenance, reset_peak_memory
from phaseavg.runs.result import cost, summarise_errors, summary
from phaseavg.runs.weights import write_weights
from phaseavg.targets import build
from phaseavg.training.execution import prepare
from phaseavg.training.loop import train
from phaseavg.training.parts import assemble
from phaseavg.training.preview import preview, start_line
from phaseavg.training.sharing import Sharing

CONF = Path(__file__).with_name("conf")


def run(settings: Settings, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train one run, or read its result if it has finished, and return the result.

    Args:
        settings: the run's settings.
        overrides: the command line's overrides, saved in the record.
    """
    if settings.share.prefix is not None:
        settings = prefix_settings(settings)
    elif not settings.rerun and (result := on_first(finished_before)(settings)):
        return dict(result)

    settings, device = prepare(settings)
    reset_peak_memory(device)
    data, schedule, state = assemble(settings, device)
    if settings.dry_run:
        print(preview(settings, data, schedule, state), flush=True)
        return {"run_id": settings.run_id, "status": "dry run"}

    sharing = Sharing(settings, device)
    is_prefix = settings.share.prefix is not None
    with RunFolder(settings.run_folder, wait=is_prefix, deadline=settings.deadline) as folder:
        if settings.rerun:
            folder.reopen()
        elif result := on_first(finished_before)(settings):  # by another process
            return dict(result)
        elif sharing.is_saved():
            return {"run_id": settings.run_id, "status": "finished"}
        folder.write_config(settings.record())
        sharing.restore(state, folder)
        state.add_provenance(
            provenance(device, settings.execution.model_dump()) | own_code(settings.record())
        )
        folder.write_metrics(state.history)
        print(f"{folder.path}: {start_line(settings, data, schedule, state)}", flush=True)
        tracking = build(
            "tracking",
            settings.tracking,
            recipe=settings.recipe(),
            config=settings.record() | state.provenance[-1],
            history=state.history,
        )
        with tracking:
            try:
                train(state, data, schedule, settings, folder, tracking, sharing)
                outcome: dict[str, Any] = {"status": "finished"}
            except Diverged as error:
                outcome = {"status": "diverged", **error.outcome}
        if is_prefix:  # it has no result of its own
            folder.remove_failure()
            return {"run_id": settings.run_id, **outcome}
        if outcome["status"] == "finished":
            outcome |= summarise_errors(state.history, settings.observers)
        result = {
            "run_id": settings.run_id,
            **outcome,
            **cost(state.history),
            "recipe": settings.recipe(),
            "numerics_version": NUMERICS_VERSION,
            "overrides": list(overrides),
            "save_trajectory": settings.save_trajectory,
            "inherited": state.shared,
            "peak_memory_bytes": peak_memory_bytes(device),
            "provenance": state.provenance,
            "date": datetime.now(UTC).date().isoformat(),
        }
        tracking.finish(result)
        if settings.save_weights:
            path = folder.path / "weights.safetensors"
            print(f"{path}: {write_weights(state.model, path, settings.run_id) / 1e6:.1f} MB")
        folder.finish(result)
    print(summary(result), flush=True)
    return result


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
@report_errors
def main(config: DictConfig) -> float | None:
    """Train the run that `config` describes and return its test error in %."""
    with joined():
        settings = on_first(check)(config)
        result = run(settings, recorded_overrides())
    if result["status"] == "diverged":
        raise Diverged(result)
    return result.get("test_error")


if __name__ == "__main__":
    sys.exit(command_line(main))
