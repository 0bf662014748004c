"""Find a finished run again, and say how it differs from what is asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from phaseavg.config import SavedTrajectory, Settings
from phaseavg.runs.folder import TRAJECTORY, read_result
from phaseavg.runs.provenance import how
from phaseavg.runs.result import summary

Result = Mapping[str, Any]


def finished_before(settings: Settings) -> Result | None:
    """Return the result of a run that is finished, and print where it is; None if there is none.

    It is looked for among the runs and among the records. The line says in which precision and on
    which device it was made, and what of the request it does not have.
    """
    for folder in settings.places:
        if result := read_result(folder):
            notes = ["finished before", *lacking(folder, result, settings)]
            if other := made_otherwise(result, settings):
                notes.append(f"NOT as asked for ({other})")
            made = ", ".join(filter(None, (made_with(result), result.get("date"))))
            print(f"{folder}: {', '.join(notes)}: {made}; rerun=true repeats it")
            print(summary(result), flush=True)
            return result
    return None


def lacking(folder: Path, result: Result, settings: Settings) -> list[str]:
    """Return in words what a finished run does not have of what is asked for.

    Args:
        folder: of the run.
        result: of the run.
        settings: that ask for the run, of which weights, trajectory and observers count.
    """
    lacks = []
    if settings.save_weights and not (folder / "weights.safetensors").exists():
        lacks.append("without its final weights")
    kinds = get_args(SavedTrajectory)
    saved = (any((folder / TRAJECTORY).glob("step-*")) and result.get("save_trajectory")) or "none"
    if kinds.index(saved) < kinds.index(settings.save_trajectory):
        lacks.append(f"without save_trajectory={settings.save_trajectory}")
    for name, part in settings.observers.items():
        observer = result.get("observers", {}).get(name, {}).get("averaging")
        if _canonical(observer) != _canonical(part):
            lacks.append(f"without observers.{name}")
    return lacks


def _execution(result: Result) -> Mapping[str, Any]:
    """Return with what the last part of a run was computed; nothing if its record does not say."""
    made = result.get("provenance") or [{}]
    return made[-1].get("execution", {})


def made_with(result: Result) -> str:
    """Return in words with what a run was computed: `bf16, CUDA graph on NVIDIA H100`."""
    execution = _execution(result)
    if "precision" not in execution:
        return "on an unknown device"
    return f"{', '.join(how(execution))} on {execution.get('device_name', execution['device'])}"


def made_otherwise(result: Result, settings: Settings) -> str:
    """Return in words how the execution of a finished run differs from what is asked for.

    What is asked for as `auto` is left open.
    """
    made, asked = _execution(result), settings.execution
    pairs = [
        ("precision", made.get("precision"), asked.precision),
        ("device", str(made.get("device")).partition(":")[0], asked.device.partition(":")[0]),
        ("deterministic", made.get("deterministic"), asked.deterministic),
    ]
    return ", ".join(
        f"{name} is {found}, not {wanted}"
        for name, found, wanted in pairs
        if wanted not in ("auto", found) and (name != "deterministic" or wanted)
    )


def _canonical(values: Any) -> str:
    return json.dumps(values, sort_keys=True)
