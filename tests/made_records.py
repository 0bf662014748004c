"""Records made by hand, for tests of what is read from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from phaseavg.config import Settings
from phaseavg.identity import NUMERICS_VERSION, RECIPE, run_id
from phaseavg.report.cells import CELL, COLUMNS, read_paper, read_records
from phaseavg.report.study import Study
from phaseavg.runs.result import summarise_errors
from phaseavg.sweep.cells import Cell, Request

EXECUTION = {
    "device_name": "a GPU",
    "cpu_capability": "AVX2",
    "threads": 1,
    "precision": "fp32",
}


def metrics_line(
    epoch: int,
    weights: float | None = None,
    bn: float | None = None,
    average: float | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return the metrics of an epoch with the test errors (%) that are given; losses are a tenth.

    Args:
        epoch: from 1.
        weights: of the weights as the optimizer left them.
        bn: of these after a BatchNorm pass.
        average: of the average.
        others: keys that are added or replaced, such as `replaced` at the end of a phase.
    """
    made: dict[str, Any] = {"epoch": epoch, "phase": 1, "step": 8 * epoch, "learning_rate": 0.1}
    made["train"] = {"images": 1000, "loss": 1 / epoch, "error": 50.0}
    tests = {"weights": weights, "bn": bn, "average": average}
    made |= {name: {"loss": e / 10, "error": e} for name, e in tests.items() if e is not None}
    if average is not None:
        made["average"]["without_bn"] = {"loss": 9.0, "error": 90.0}
    return made | {"images_per_second": 10.0, "seconds": {"train": 3.0}} | others


def made_result(
    name: str,
    test_error: float | None,
    seconds: float = 100.0,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    recipe: Mapping[str, Any] | None = None,
    **execution: Any,
) -> dict[str, Any]:
    """Return the result of a run of a name, with the arguments of `keep`."""
    if metrics is None:
        metrics = [metrics_line(1, test_error, test_error, replaced=False)]
    recipe = recipe or {"seed": 0}
    result: dict[str, Any] = {
        "run_id": name,
        "numerics_version": NUMERICS_VERSION,
        "recipe": recipe,
        "overrides": ["preset=demo", f"seed={recipe['seed']}"],
        "observers": {},
        "status": "diverged" if test_error is None else "finished",
        "epochs": len(metrics),
        "steps": 16,
        "seconds": {"total": seconds + 11, "train": seconds, "averaging": 1.0},
        "inherited": {"epochs": 0, "seconds": 0.0},
        "provenance": [
            {
                "execution": EXECUTION | execution,
                "versions": {"torch": "2.15.0"},
                "git": {"commit": "0" * 40, "modified": False},
            }
        ],
    }
    if test_error is None:
        return result | {"reason": "nan", "step": 3, "epoch": 1, "learning_rate": 0.1}
    return result | summarise_errors(metrics, {}) | {"images_per_second": 1000.0}


def make_record(
    settings: Settings,
    test_error: float | None,
    bn_test_error: float | None = None,
    seconds: float = 100.0,
    where: Path | None = None,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    **execution: Any,
) -> Path:
    """Write the record of a run, diverged if it has no error; return its folder.

    Args:
        settings: of the run.
        test_error: in %, at the end of training.
        bn_test_error: likewise, after a BatchNorm pass; by default the same.
        seconds: of training; averaging takes one more.
        where: its folder; by default where the run would leave it.
        metrics: its epochs; by default two that end with these errors.
        execution: what is other than `EXECUTION`.
    """
    folder = where or settings.run_folder
    folder.mkdir(parents=True)
    if metrics is None:
        passed = test_error if bn_test_error is None else bn_test_error
        end = {} if test_error is None else {"replaced": False}
        metrics = [metrics_line(1, test_error), metrics_line(2, test_error, passed, **end)]
    made = (test_error, seconds, metrics, settings.recipe())
    result = made_result(settings.run_id, *made, **execution)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.record(), sort_keys=False))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in metrics))
    return folder


def change_result(folder: Path, **values: Any) -> None:
    """Replace values of a record's result."""
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_config(folder: Path, config: dict[str, Any]) -> str:
    """Give a record another config and the run id that follows from it; return that."""
    recipe = {key: config[key] for key in RECIPE if key in config}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    version = json.loads((folder / "result.json").read_text())["numerics_version"]
    own = run_id(recipe, version)
    change_result(folder, recipe=recipe, run_id=own)
    return own


def rows(*entries: tuple) -> pd.DataFrame:
    """Return rows as `read_cells` has them: (table, dataset, model, column, seed, error, …)."""
    made = [
        dict(zip([*CELL, "seed", "test_error"], entry[:6], strict=True))
        | {"run_id": "r", "status": "finished", "bn_test_error": entry[5], "epochs": 1}
        | {"method_seconds": 1.0, "averaging_seconds": 0.0, "execution": "x"}
        | {"modified": "False", "before_averaging": False}
        | (entry[6] if len(entry) > 6 else {})
        for entry in entries
    ]
    return pd.DataFrame(made, columns=COLUMNS)


PAPER = read_paper()
CELLS = [Cell(*key, ()) for key in PAPER.index]


def study_of(frame: pd.DataFrame) -> Study:
    """Return a study of all published cells, with rows that no record is behind."""
    study = Study(Request({}, CELLS), {}, *read_records([]), PAPER)
    study.rows = frame
    return study
