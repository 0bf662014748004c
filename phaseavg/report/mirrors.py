"""W&B runs as the frames that records give: of a project online, or of folders offline."""

import io
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from phaseavg.errors import UserError, told
from phaseavg.report.records import DAMAGED, joined, row_of
from phaseavg.runs.files import write_atomically
from phaseavg.runs.record import checked_config, require_one_run
from phaseavg.tracking import RECORD, in_training, local_files

INSPECT = (sys.executable, "-m", "wandb", "leet", "inspect", "--json")
"""W&B's own reader of its files."""

SAYS = "wandb leet inspect: "
"""What a line of the reader begins with that is about the file."""

GOING = ("running", "pending")
"""States of W&B's in which a run has not ended."""

FLOATS = (
    *("test_error", "best_test_error", "bn_test_error"),
    *("seconds", "inherited_seconds", "method_seconds", "averaging_seconds"),
)
"""Columns of numbers that W&B may return as whole ones: it does not tell 1.0 from 1."""


@dataclass(frozen=True)
class Mirror:
    """What W&B has of a run.

    Attributes:
        where: its file, or its address.
        config: W&B's.
        summary: W&B's.
        history: a row per epoch, without what W&B adds.
        going: whether it has not ended.
        trouble: what the reader has said of the file.
    """

    where: str | Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    going: bool
    trouble: str = ""

    def lacking(self) -> str:
        """Return in words why there is no row of the run; nothing if there is one."""
        result = self.summary.get("result")
        if not result:
            state = "still going" if self.going else "cut off before its end"
        elif RECORD not in self.config or "provenance" not in result:
            state = "without its record: an older version has written it, or another program"
        elif len(self.history) != result["epochs"]:
            state = f"damaged: {len(self.history)} of {result['epochs']} epochs are there"
        else:
            return ""
        return f"{state} ({self.trouble})" if self.trouble else state

    def row(self) -> dict[str, Any]:
        """Return what `read_runs` has of the run; `path` is where it is."""
        config = checked_config(self.config[RECORD])
        result = self.summary["result"]  # without all that it has, so its keys are not checked
        require_one_run(result, config)
        row = row_of(result, config, self.where)
        floats = {name: float(row[name]) for name in FLOATS if row[name] is not None}
        return row | floats

    def metrics(self) -> pd.DataFrame:
        """Return its metrics, a row per epoch, with the types that a record's have."""
        lines = "".join(f"{json.dumps(dict(row))}\n" for row in self.history)
        return pd.read_json(io.StringIO(lines), lines=True)


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}


def inspected(file: Path) -> Mirror:
    """Return what a file of W&B's has, as far as it can be read."""
    read = subprocess.run([*INSPECT, file], capture_output=True, text=True)  # noqa: S603 -- W&B's
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history = []
    said = [line for line in read.stderr.splitlines() if read.returncode or line.startswith(SAYS)]
    trouble = said[-1].removeprefix(SAYS) if said else ""
    try:
        for line in read.stdout.splitlines():
            record = json.loads(line)
            content = record.get(record["type"], {})
            if record["type"] == "run":
                config |= content.get("config", {}).get("update", {})
            elif record["type"] == "summary":
                summary |= content.get("update", {})
            elif record["type"] == "history":
                history.append(_own(content["item"]))
    except DAMAGED as error:
        trouble = told(error)
    return Mirror(file, config, summary, history, in_training(file), trouble)


def offline(folders: Iterable[Path]) -> list[Mirror]:
    """Return the W&B runs in folders and those below them.

    Raises:
        UserError: if one is not there, or has none.
    """
    files = []
    for folder in folders:
        found = local_files(folder)
        if not found:
            raise UserError(f"{folder}: there is no W&B run in it; name a folder with some")
        files += found
    with ThreadPoolExecutor() as readers:  # each waits for a process of its own
        return list(readers.map(inspected, dict.fromkeys(files)))


def online(api: Any, project: str) -> Iterator[Mirror]:
    """Return the W&B runs of a project.

    Args:
        api: a `wandb.Api`.
        project: as the API has it: entity, a slash, and name.
    """
    for run in api.runs(project):
        summary = run.summary_metrics
        whole = "result" in summary and RECORD in run.config  # else its history is of no use
        history = [_own(row) for row in run.scan_history()] if whole else []
        yield Mirror(run.url, run.config, summary, history, run.state in GOING)


def frames(mirrors: Iterable[Mirror]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Return runs and metrics as `read_runs` and `read_metrics` do, and what was left out, and why.

    Of a run that was started several times in one folder, the last start counts.

    Raises:
        UserError: if no run is whole.
    """
    whole: dict[tuple[Any, str], tuple[dict[str, Any], pd.DataFrame]] = {}
    left_out = {}
    for mirror in mirrors:
        try:
            if reason := mirror.lacking():
                left_out[str(mirror.where)] = reason
                continue
            row, curves = mirror.row(), mirror.metrics()
        except DAMAGED as error:
            left_out[str(mirror.where)] = f"damaged, or another program's ({told(error)})"
            continue
        place = mirror.where.parents[1] if isinstance(mirror.where, Path) else None
        whole[place, str(row["run_id"])] = row, curves
    if not whole:
        reasons = "; ".join(f"{where}: {reason}" for where, reason in left_out.items())
        raise UserError(f"there is no run that has ended; {reasons or 'nor any other'}")
    kept = sorted(whole.items(), key=lambda item: item[0][1])
    runs = pd.DataFrame([row for _, (row, _) in kept])
    finished = runs["status"] == "finished"
    drawn = [own for (_, (_, own)), counts in zip(kept, finished, strict=True) if counts]
    columns = ("averaging", "seed")
    metrics = (
        joined(runs[finished], drawn, columns)
        if drawn
        else pd.DataFrame(columns=["run_id", *columns])
    )
    return runs, metrics, left_out


def write_frames(runs: pd.DataFrame, metrics: pd.DataFrame, output: Path) -> list[Path]:
    """Write runs.csv and metrics.csv to a folder; return the files."""
    output.mkdir(parents=True, exist_ok=True)
    texts = {"runs.csv": runs.drop(columns="path"), "metrics.csv": metrics}
    for name, frame in texts.items():
        text = frame.to_csv(index=False, lineterminator="\n")
        write_atomically(output / name, text.encode(), f"--output={output}")
    return [output / name for name in texts]
