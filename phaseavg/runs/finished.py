"""Find a finished run, and report how it differs from the requested one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from phaseavg.config import SavedTrajectory, Settings
from phaseavg.runs.folder import TRAJECTORY, read_result
from phaseavg.runs.provenance import how
from phaseavg.runs.result import summary

Result = Mapping[str, Any]


def finished_before(settings: Settings) -> Result | None:
    """Return the result of a finished run in `runs_dir` or `records_dir`, and print where it is.

    Prints its precision and device too, and what it lacks of the requested run. Returns None if
    the run is not finished.
    """
    for folder in settings.places:
        if result := read_result(folder):
            execution = result["provenance"][-1]["execution"]
            made = ", ".join(how(execution)) + f" on {execution['device_name']}"
            notes = ", ".join(["finished before", *differences(folder, result, settings)])
            date = f", {result['date']}" if "date" in result else ""
            print(f"{folder}: {notes}: {made}{date}; rerun=true repeats it")
            print(summary(result), flush=True)
            return result
    return None


def differences(folder: Path, result: Result, settings: Settings) -> list[str]:
    """Return how a finished run differs from the requested one; `auto` requests nothing.

    Args:
        folder: of the run.
        result: of the run.
        settings: of the requested run.
    """
    notes = []
    if settings.save_weights and not (folder / "weights.safetensors").exists():
        notes.append("without its final weights")
    kinds = get_args(SavedTrajectory)
    saved = result.get("save_trajectory", "none") if (folder / TRAJECTORY).exists() else "none"
    if kinds.index(saved) < kinds.index(settings.save_trajectory):
        notes.append(f"without save_trajectory={settings.save_trajectory}")
    for name, part in settings.observers.items():
        if result["observers"].get(name, {}).get("averaging") != part:
            notes.append(f"without observers.{name}")
    made = result["provenance"][-1]["execution"]
    for name in ("precision", "device", "deterministic"):
        value, requested = made.get(name), getattr(settings.execution, name)
        if name == "device":
            value, requested = (str(text).partition(":")[0] for text in (value, requested))
        if requested not in ("auto", value) and requested is not False:
            notes.append(f"with execution.{name}={value}, not {requested}")
    return notes
