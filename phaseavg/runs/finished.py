"""Find a finished run and report how it differs from the requested run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from phaseavg.config import SavedTrajectory, Settings
from phaseavg.runs.folder import TRAJECTORY, read_result
from phaseavg.runs.provenance import execution_words
from phaseavg.runs.result import summary

Result = Mapping[str, Any]


def find_result(settings: Settings) -> tuple[Path, Result] | None:
    """Return the folder and the result of a run in `runs_dir` or `records_dir`, if it has any."""
    for parent in (settings.runs_dir, settings.records_dir):
        if result := read_result(folder := parent / settings.run_id):
            return folder, result
    return None


def finished_before(settings: Settings) -> Result | None:
    """Return and print the result of a finished run; None if unfinished.

    Prints the folder, the precision, the device, and the differences from the requested run.
    """
    if (found := find_result(settings)) is None:
        return None
    folder, result = found
    execution = result["provenance"][-1]["execution"]
    computed = ", ".join(execution_words(execution)) + f" on {execution['device_name']}"
    notes = ", ".join(["finished before", *differences(folder, result, settings)])
    date = f", {result['date']}" if "date" in result else ""
    print(f"{folder}: {notes}: {computed}{date}; add rerun=true to repeat it")
    print(summary(result), flush=True)
    return result


def differences(folder: Path, result: Result, settings: Settings) -> list[str]:
    """List the differences of a finished run from the requested run; `auto` matches any value.

    Args:
        folder: the folder of the finished run.
        result: the result of the finished run.
        settings: the settings of the requested run.
    """
    notes = []
    if settings.save_weights and not (folder / "weights.safetensors").exists():
        notes.append("without final weights")
    kinds = get_args(SavedTrajectory)
    saved = result.get("save_trajectory", "none") if (folder / TRAJECTORY).exists() else "none"
    if kinds.index(saved) < kinds.index(settings.save_trajectory):
        notes.append(f"without save_trajectory={settings.save_trajectory}")
    for name, part in settings.observers.items() if result["status"] == "finished" else ():
        if result["observers"].get(name, {}).get("averaging") != part:
            notes.append(f"without observers.{name}")
    execution = result["provenance"][-1]["execution"]
    for name in ("precision", "device", "deterministic"):
        value, requested = execution.get(name), getattr(settings.execution, name)
        if name == "device":
            value, requested = (str(text).partition(":")[0] for text in (value, requested))
        if requested not in ("auto", value) and requested is not False:
            notes.append(f"with execution.{name}={value}, not {requested}")
    return notes
