"""A workspace shows the content of tables and is built without a server."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import wandb
import wandb_workspaces.workspaces as ws
from conftest import Prompt, assert_one_line
from made_records import make_record

from phaseavg.report.study import read_study

ASKED = ("table=t1a,t1b", "model=cnn13", "column=gamma0-0.9,80-40-40-sgd", "seed=0,1")


def test_each_table_has_a_section_with_the_papers_numbers(script: Prompt, tmp_path: Path) -> None:
    inputs = (*ASKED, f"runs_dir={tmp_path}", f"records_dir={tmp_path}")
    study = read_study(inputs)
    for run in study.runs.values():
        if run.labels[0].startswith("t1a"):
            make_record(run.settings, 25.0 + run.settings.seed)
    named = ("--entity=us", "--project=ours", "--dry-run")
    status, out, _ = script("wandb_dashboard", *inputs, *named)
    assert status == 0
    spec = json.loads(out)
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("us", "ours", "Tables 1a, 1b")
    (runset,) = spec["spec"]["section"]["runSets"]
    (only,) = runset["filters"]["filters"]
    assert (only["key"], only["op"]) == ({"section": "run", "name": "name"}, "IN")
    assert only["value"] == sorted(study.runs)
    assert len(study.runs) == 4

    tables = {}
    for section in spec["spec"]["section"]["panelBankConfig"]["sections"][:2]:
        beside, *panels = section["panels"]
        tables[section["name"].partition(": ")[0]] = beside["config"]["value"]
        shown = {metric for panel in panels for metric in panel["config"]["metrics"]}
        assert {"weights/error", "train/loss", "summary_metrics.test_error"} <= shown
    ours, blank = tables["Table 1a"], tables["Table 1b"]
    assert "25.50 ± 0.71 (2)" in ours
    assert "26.05 ± 0.08" in ours  # from results/paper.csv
    assert "0 of 1 cells have runs" in blank
    assert "26.52 ± 0.16" in blank


def test_saving_needs_a_server_and_reports_errors(
    monkeypatch: pytest.MonkeyPatch, script: Prompt
) -> None:
    one = ("table=t1a", "model=cnn13", "column=learnt", "seed=0")
    saved = []

    def upsert(view: Any) -> dict[str, Any]:
        saved.append(view)
        return {"upsertView": {"view": {"name": view.name, "id": "id"}}}

    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(default_entity="me"))
    monkeypatch.setattr(ws.interface, "get_app_url", lambda api: "https://wandb.example")
    monkeypatch.setattr(ws.internal, "upsert_view2", upsert)
    status, out, _ = script("wandb_dashboard", *one)
    assert status == 0
    (view,) = saved
    assert (view.entity, view.project, view.display_name) == ("me", "phaseavg", "Table 1a")
    assert out.startswith("https://wandb.example/me/phaseavg?nw=")

    error = wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")
    monkeypatch.setattr(wandb, "Api", Mock(side_effect=error))
    message = "not saved: No API key configured."
    assert_one_line(script("wandb_dashboard", *one), message, "wandb_dashboard.py")
