"""Records of finished runs as pandas frames."""

import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd

from phaseavg.errors import UserError, told
from phaseavg.runs.files import alone_in, write_atomically
from phaseavg.runs.identity import parts_of
from phaseavg.runs.record import (
    ended_runs,
    metrics_file,
    read_config,
    read_lines,
    read_result,
    require_one_run,
)
from phaseavg.runs.record import (
    read_metrics as metrics_text,
)

RECIPE = (
    *("dataset.", "model.", "optimizer.", "schedule.", "averaging."),
    *("batch_size", "batchnorm_batches", "optimizer_state", "numerics_version"),
)
"""What the names of columns begin with that hold a run's recipe, the seed apart."""


DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a file comes to that is cut off, or of another program."""


def phase_ends(config: Mapping[str, Any]) -> list[int]:
    """Return after how many epochs each phase of a recorded config ends.

    Nothing that the config names is imported or called: a record may be from anywhere.

    Returns:
        The ends in their order; none where `epochs` and `divisor` of its schedule do not say them.
    """
    schedule = config.get("schedule")
    if not isinstance(schedule, Mapping):
        return []
    lengths, divisor = schedule.get("epochs"), schedule.get("divisor", 1)
    if not isinstance(lengths, list) or type(divisor) is not int or divisor < 1:
        return []
    if any(type(length) is not int or length < 1 or length % divisor for length in lengths):
        return []
    return list(accumulate(length // divisor for length in lengths))


def read_row(folder: Path) -> dict[str, Any]:
    """Return what a record says of its run; see `read_runs`.

    Raises:
        UserError: if it is damaged.
    """
    try:
        return _row(folder)
    except DAMAGED as error:
        raise damaged(folder, error) from error


def _row(folder: Path) -> dict[str, Any]:
    result, config = read_result(folder), read_config(folder)
    require_one_run(result, config)
    return row_of(result, config, folder)


def row_of(result: Mapping[str, Any], config: Mapping[str, Any], path: Any) -> dict[str, Any]:
    """Return what `read_runs` has of a run.

    Args:
        result: as in result.json.
        config: as in config.yaml.
        path: where they are from.
    """

    def made_with(kind: str, key: str) -> str:
        entries = (str(entry[kind].get(key)) for entry in result["provenance"])
        return " + ".join(dict.fromkeys(entries))

    inherited = result.get("inherited", {"epochs": 0, "seconds": 0.0})  # older ones share nothing
    settings = pd.json_normalize(dict(config)).iloc[0].drop("seed")
    return {
        "run_id": result["run_id"],
        **parts_of(config),
        "seed": config["seed"],
        "numerics_version": result["numerics_version"],
        "status": result["status"],
        "test_error": result.get("test_error"),
        "best_test_error": result.get("best_test_error"),
        "bn_test_error": result.get("with_bn_pass", {}).get("test_error"),
        "epochs": result["epochs"],
        "seconds": result["seconds"],
        "inherited_epochs": inherited["epochs"],
        "inherited_seconds": inherited["seconds"],
        "method_seconds": sum(result[f"{kind}_seconds"] for kind in ("train", "averaging")),
        "averaging_seconds": result["averaging_seconds"],
        "device": made_with("execution", "device"),
        "device_name": made_with("execution", "device_name"),
        "cpu_capability": made_with("execution", "cpu_capability"),
        "threads": made_with("execution", "threads"),
        "precision": made_with("execution", "precision"),
        "torch": made_with("versions", "torch"),
        "commit": made_with("git", "commit"),
        "modified": made_with("git", "modified"),
        "path": path,
        **{key: str(item) if isinstance(item, list) else item for key, item in settings.items()},
    }


def damaged(folder: Path, error: Exception, file: str = "") -> UserError:
    """Return what is said of a damaged record.

    Args:
        folder: of the record.
        error: that showed it.
        file: of the record, if the error does not name it.
    """
    shown = f"{file}: {told(error)}" if file else told(error)
    return UserError(f"{folder}: a damaged record ({shown}); move it away and repeat the run")


def read_runs(folder: Path) -> pd.DataFrame:
    """Return a row per finished run below `folder`, sorted by run id.

    Columns: run_id, dataset, model, optimizer, averaging (short names, as in run ids), seed; of the
    result: numerics_version, status, test_error, best_test_error and bn_test_error (%, the last of
    the last weights after a BatchNorm pass), epochs, seconds, of these inherited_epochs and
    inherited_seconds, that were trained for several runs at once, method_seconds (training and
    averaging) and of these averaging_seconds; with what it was computed: device, device_name,
    cpu_capability, threads, precision, torch, commit, modified (with ` + ` between them where a run
    was continued with another); `path`, the run's folder; and the whole config, by the names that
    an override has at the prompt.

    Raises:
        UserError: if there are none, or a record is damaged.
    """
    rows = [read_row(path) for path in ended_runs(folder)]
    if not rows:
        raise UserError(f"{folder}: there is no finished run in it; name a folder with runs")
    return pd.DataFrame(rows)


def write_runs(records: Path) -> Path:
    """Write `runs.csv` beside the folder of records, a line per run; return its path.

    Raises:
        UserError: if a record is damaged.
    """
    path = records.parent / "runs.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(records) if records.is_dir() else nullcontext():
        some = ended_runs(records)
        text = read_runs(records).drop(columns="path").to_csv(index=False) if some else "run_id\n"
    write_atomically(path, text.encode(), f"--records={records}")
    return path


def require_repetitions(runs: pd.DataFrame, by: Sequence[str]) -> None:
    """Check that runs that agree in the columns `by` differ in nothing but the seed.

    Raises:
        UserError: if they do, so that no mean is taken over different recipes.
    """
    recipe = [name for name in runs if name.startswith(RECIPE) and name not in by]
    for group, members in runs.groupby(list(by), dropna=False):
        differing = [name for name in recipe if members[name].nunique(dropna=False) > 1]
        if differing:
            shown = ", ".join(f"{key}={value}" for key, value in zip(by, group, strict=True))
            raise UserError(
                f"{members['path'].iloc[0].parent}: the runs with {shown} also differ in "
                f"{', '.join(differing)}; tell them apart by these, or keep them in two folders"
            )


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run or a record with its exact numbers, a mapping per epoch.

    An empty list if it has no such file.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return read_lines(folder)
    except (OSError, ValueError) as error:
        raise damaged(folder, error, metrics_file(folder).name) from error


def read_metrics(
    runs: pd.DataFrame, columns: Sequence[str] = ("averaging", "seed")
) -> pd.DataFrame:
    """Return the metrics of the finished `runs`, a row per run and epoch.

    Args:
        runs: from `read_runs`.
        columns: of `runs`, that are wanted beside the metrics and the run_id.

    Raises:
        UserError: if none of them is finished, or a file is missing or damaged.
    """
    finished = runs[runs["status"] == "finished"]
    if finished.empty:
        raise UserError(f"{runs['path'].iloc[0].parent}: every run in it has diverged")
    frames = []
    for path in finished["path"]:
        try:
            metrics = pd.read_json(io.BytesIO(metrics_text(path)), lines=True)
        except (OSError, ValueError) as error:
            raise damaged(path, error) from error
        frames.append(metrics)
    return joined(finished, frames, columns)


def joined(
    runs: pd.DataFrame, metrics: Sequence[pd.DataFrame], columns: Sequence[str]
) -> pd.DataFrame:
    """Return metrics in one frame, with columns of their runs.

    Args:
        runs: from `read_runs`.
        metrics: of each of them, a row per epoch.
        columns: of `runs`, that are wanted beside the metrics and the run_id.
    """
    frames = [frame.assign(path=path) for path, frame in zip(runs["path"], metrics, strict=True)]
    # By their folders: one run may be there twice, as it was carried out in two ways.
    made = runs[["path", "run_id", *columns]]
    return pd.concat(frames).merge(made, on="path").drop(columns="path")
