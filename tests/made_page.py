"""A page made of a few records by hand, for tests of it."""

import json
from pathlib import Path
from typing import Any

import yaml
from conftest import REPOSITORY
from made_records import change, configured, keep, line

from phaseavg.report.cells import read_paper
from phaseavg.report.page import write_page
from phaseavg.report.page_sections import Source
from phaseavg.report.study import read_study

CONF = REPOSITORY / "conf"
PAPER = read_paper(REPOSITORY / "results/paper.csv")

NASTY = "<script>alert(1)</script>"
"""What a run is called; another one is a value of its config."""


def sources(root: Path) -> list[Source]:
    """Return two studies of a few cells, whose runs and records are below `root`."""
    folders, others = (
        (f"runs_dir={root}/{name}", f"records_dir={root}/{name}-records")
        for name in ("runs", "thin")
    )
    narrowed = ("table=t1b", "model=cnn13", "column=80-40-40-sgd,80-40-40-ours", *folders)
    thin = ("preset=mini", "table=t1b", "model=cnn13_digits", "column=80-40-40-ours", *others)
    return [
        Source("full", "At full size", "Two cells.", narrowed, ("make table1b",)),
        Source("mini", "In miniature", "One cell.", thin, ("make mini",), "mini"),
    ]


def metrics(errors: list[float | None]) -> list[dict[str, Any]]:
    """Return metrics whose average replaces the weights at the end."""
    *others, last = (line(epoch, error) for epoch, error in enumerate(errors, start=1))
    if "weights" not in last:
        return [*others, last]
    return [*others, line(len(errors), last["weights"]["error"], 9.0, 1.23456789, replaced=True)]


def fill(root: Path) -> None:
    """Keep runs that finished, diverged, broke off and have strange names, and three figures."""
    study = read_study(sources(root)[0].overrides, CONF, PAPER)
    sgd, ours = (
        [run for run in study.runs.values() if run.cells[0].column == f"80-40-40-{column}"]
        for column in ("sgd", "ours")
    )
    for seed, error in enumerate((30.5, 31.5)):
        keep(sgd[seed].settings, error, metrics=metrics([50 + seed, 40, None, error]))
        keep(ours[seed].settings, error - 1, metrics=metrics([50 + seed, 41, None, error - 1]))
    keep(sgd[2].settings, None, metrics=metrics([90.0, None]))
    broken = ours[2].settings
    keep(broken, 1.0, metrics=metrics([60.0] * 12))
    (broken.run_folder / "result.json").unlink()
    (broken.run_folder / "failure.json").write_text(
        json.dumps({"run_id": broken.run_id, "error": "no & disk <left>"})
    )

    strange = keep(
        sgd[0].settings, 20.0, where=root / "more" / "strange", metrics=metrics([20.0, 20.0])
    )
    config = yaml.safe_load((strange / "config.yaml").read_text())
    config["execution"]["device"] = NASTY.replace("1", "2")
    config["model"]["_target_"] = f"no.such.{NASTY}"
    configured(strange, config)
    change(strange, overrides=[f"model={NASTY}"])

    figures = root / "results" / "figures"
    figures.mkdir(parents=True)
    square = "<svg xmlns='http://www.w3.org/2000/svg' width='900' height='90'/>"
    for name in ("drawn", "partial", "blank"):
        (figures / f"{name}.svg").write_text(square)
    (figures / "partial.csv").write_text("x\n1\n")
    index = {
        "drawn": {"title": "A square & more", "caption": "What it <shows>.", "missing": ""},
        "partial": {"title": "A part", "caption": "Half.", "missing": "seed 2; train it"},
        "blank": {"title": "Nothing", "caption": "", "missing": "no runs; make some"},
    }
    (figures / "figures.json").write_text(json.dumps(index))


def build(root: Path) -> Path:
    """Write the page of `fill` and return its file."""
    said: list[str] = []
    index, _ = write_page(
        root / "results", sources(root), [root / "more"], CONF, PAPER, said.append
    )
    assert said[0].startswith("At full size: composing and reading table=t1b ")
    return index
