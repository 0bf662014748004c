"""W&B runs give the frames that their records give."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import wandb
from conftest import TINY, Prompt
from wandb.apis.public import Api, Run

from phaseavg.report import mirrors
from phaseavg.report.records import read_metrics, read_runs
from phaseavg.runs.folder import RunFolder
from phaseavg.tracking import RECORD, local_files
from scripts import wandb_export as script

TABLE = """\
title: how it ends
rows:
  - [dataset=digits, model=cnn13_digits]
columns:
  plain: [averaging=none, optimizer.lr=1.0]
  ours: [averaging=phasewise]
  bad: [averaging=none, optimizer.lr=1e20]
"""


@pytest.fixture
def trained(prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with runs of a table that W&B has mirrored offline; one has diverged."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        if name != "WANDB_SERVICE":  # the process that this one has already started
            monkeypatch.delenv(name)
    (tmp_path / "mine/table").mkdir(parents=True)
    (tmp_path / "mine/table/ends.yaml").write_text(TABLE)
    mine = ("--config-dir", str(tmp_path / "mine"), "-m", *TINY[:-1], "schedule.epochs=[1,1,1]")
    status, _, err = prompt(*mine, "tracking=wandb", "table=ends", "seed=0", "share=false")
    assert status == 1
    assert "diverged" in err
    assert "W&B" not in err
    return tmp_path / "runs"


class StandIn:
    """A `wandb.Api` that has what files of W&B's have, as a server gives it."""

    def __init__(self, found: list[mirrors.Mirror]) -> None:
        self.found = found

    def runs(self, path: str) -> Iterator[Any]:
        assert path == "me/phaseavg"
        for mirror in self.found:
            history = [row | {"_step": row["epoch"], "_runtime": 1.5} for row in mirror.history]
            yield SimpleNamespace(
                url=f"https://wandb.example/{mirror.summary['result']['run_id']}",
                state="failed" if mirror.summary["result"]["status"] == "diverged" else "finished",
                config=mirror.config,
                summary_metrics=dict(mirror.summary),
                scan_history=lambda history=history: iter(history),
            )
        going = {"config": self.found[0].config, "summary_metrics": {"epoch": 2}}
        yield SimpleNamespace(url="https://wandb.example/going", state="running", **going)
        other = {"config": {"lr": 1}, "summary_metrics": {"result": {"status": "finished"}}}
        yield SimpleNamespace(url="https://wandb.example/other", state="finished", **other)


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["wandb_export.py", *map(str, arguments)])
    return script.main()


def test_the_frames_are_those_of_the_records(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    runs = read_runs(trained)
    metrics = read_metrics(runs)
    assert sorted(runs["status"]) == ["diverged", "finished", "finished"]

    def same(found: tuple[pd.DataFrame, pd.DataFrame, Any]) -> None:
        rows, curves, _ = found
        assert list(rows) == list(runs)
        for name in runs.columns.drop("path"):
            pd.testing.assert_series_equal(rows[name], runs[name], check_exact=True)
        assert set(curves) == set(metrics)
        for name in metrics:
            pd.testing.assert_series_equal(curves[name], metrics[name], check_exact=True)

    there = mirrors.offline([trained])
    same(mirrors.frames(there))
    columns = {mirror.config["cells"]["ends"] for mirror in there}
    assert columns == {f"digits cnn13_digits {name}" for name in ("plain", "ours", "bad")}
    api = StandIn(there)
    for name in ("url", "state", "config", "summary_metrics", "scan_history"):
        assert hasattr(Run, name)
    assert hasattr(Api, "runs")
    found = mirrors.frames(mirrors.online(api, "me/phaseavg"))
    same(found)
    _, _, left_out = found
    assert left_out == {
        "https://wandb.example/going": "still going",
        "https://wandb.example/other": "without its record: an older version has written it, or "
        "another program",
    }

    monkeypatch.setattr(wandb, "Api", lambda: api)
    online = ("--entity", "me", "--project", "phaseavg", "--output", tmp_path / "out")
    assert typed(monkeypatch, *online) == 0
    out, err = capfd.readouterr()
    assert out.endswith("3 runs, 2 left out\n")
    assert "https://wandb.example/going: left out, still going\n" in err
    written = pd.read_csv(tmp_path / "out/runs.csv")
    assert list(written) == list(runs.columns.drop("path"))
    assert list(written["run_id"]) == list(runs["run_id"])
    assert len(pd.read_csv(tmp_path / "out/metrics.csv")) == len(metrics) == 6

    # So it is of one that another program has written, or that says less than it should.
    first = there[0]
    result = first.summary["result"]
    foreign = {
        "yaml": {"config": {**first.config, RECORD: "dataset: {_target_: a"}},
        "key": {"config": {**first.config, RECORD: "dataset: a"}},
        "text": {"config": {**first.config, RECORD: 5}},
        "number": {"summary": {"result": 0.5}},
        "value": {"summary": {"result": result | {"seconds": "long"}}},
        "less": {"summary": {"result": {k: v for k, v in result.items() if k != "run_id"}}},
    }
    found = [replace(first, where=where, **change) for where, change in foreign.items()]
    rows, _, left_out = mirrors.frames([*found, *there])
    assert list(rows["run_id"]) == list(runs["run_id"])
    assert left_out.keys() == foreign.keys()
    assert all("\n" not in reason and "Mark" not in reason for reason in left_out.values())

    # What is torn, damaged or under way is told, and the rest is there.
    (whole,) = trained.glob("wandb/offline-run-*phasewise*")
    (file,) = whole.glob("*.wandb")
    content = file.read_bytes()
    third = len(content) // 3
    damaged = {
        "empty": b"",
        "torn": content[: 2 * third],
        "hole": content[:third] + b"x" * 100 + content[third + 100 :],
        "going": content[: 2 * third],
    }
    for name, part in damaged.items():
        copy = tmp_path / f"broken/{name}/wandb/{whole.name}"
        copy.mkdir(parents=True)
        (copy / file.name).write_bytes(part)
    with RunFolder(tmp_path / "broken/going" / file.stem.removeprefix("run-")):
        found = [*mirrors.offline([tmp_path / "broken"]), *there]
    rows, _, left_out = mirrors.frames(found)
    assert list(rows["run_id"]) == list(runs["run_id"])
    reasons = {Path(where).parents[2].name: reason for where, reason in left_out.items()}
    assert reasons.keys() == damaged.keys()
    assert reasons["going"].startswith("still going (reached the end of an incomplete .wandb file")
    assert reasons["empty"] == "cut off before its end"
    assert reasons["torn"].startswith("cut off before its end (reached the end of an incomplete")
    assert "skipped corrupt data" in reasons["hole"]

    assert typed(monkeypatch, tmp_path / "broken/torn", "--output", tmp_path / "none") == 2
    err = capfd.readouterr().err
    assert err.startswith("wandb_export.py: there is no run that has ended; ")
    assert err.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_of_each_run_the_last_start_comes_last(tmp_path: Path) -> None:
    starts = [
        tmp_path / f"wandb/{start}/run-{run}.wandb"
        for run in ("a", "b")
        for start in (
            f"run-20260101_000000-{run}",
            f"offline-run-20260102_000000-{run}",
            f"offline-run-20260102_000000-{run}-1",  # in the same second
            f"run-20260103_000000-{run}",
        )
    ]
    for file in starts:
        file.parent.mkdir(parents=True)
        file.touch()
    assert local_files(tmp_path) == starts


def test_mistakes_and_a_server_that_lets_nobody_in_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, said in {
        (): "name folders with W&B runs, or --project",
        ("here", "--project=p"): "name folders with W&B runs, or --project",
        (tmp_path / "nowhere",): "nowhere: there is no such folder",
        (tmp_path / "empty",): "empty: there is no W&B run in it",
        (tmp_path / "empty", "--entity=e"): "--entity=e: is of a --project",
    }.items():
        assert typed(monkeypatch, *arguments) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1

    def refused() -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "Api", refused)
    assert typed(monkeypatch, "--project=p") == 1
    assert capsys.readouterr().err.startswith("wandb_export.py: --project=p: No API key")
