"""Records made by hand, for tests of what is read from them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from phaseavg.config import Settings
from phaseavg.report.cells import CELL, COLUMNS
from phaseavg.runs.identity import NUMERICS_VERSION, RECIPE, run_id

EXECUTION = {
    "device_name": "a GPU",
    "cpu_capability": "AVX2",
    "threads": 1,
    "precision": "fp32",
}


def made_result(
    name: str,
    test_error: float | None,
    bn_test_error: float | None = None,
    seconds: float = 100.0,
    **execution: Any,
) -> dict[str, Any]:
    """Return the result of a run, with the arguments of `keep`."""
    result: dict[str, Any] = {
        "run_id": name,
        "numerics_version": NUMERICS_VERSION,
        "watch": {},
        "status": "diverged" if test_error is None else "finished",
        "epochs": 2,
        "steps": 16,
        "seconds": seconds + 11,
        "train_seconds": seconds,
        "averaging_seconds": 1.0,
        "provenance": [
            {
                "execution": EXECUTION | execution,
                "versions": {"torch": "2.15.0"},
                "git": {"commit": "0" * 40, "modified": False},
            }
        ],
    }
    if test_error is None:
        result |= {"reason": "nan", "step": 3, "epoch": 1, "learning_rate": 0.1}
    else:
        passed = test_error if bn_test_error is None else bn_test_error
        result |= {"test_error": test_error, "best_test_error": test_error}
        result |= {"with_bn_pass": {"test_error": passed}}
        result |= {"best_epoch": 2, "images_per_second": 1000.0}
        end = {"epoch": 2, "replaced": False, "test_error": test_error, "bn_test_error": passed}
        result["phases"] = [end]
    return result


def keep(
    settings: Settings,
    test_error: float | None,
    bn_test_error: float | None = None,
    seconds: float = 100.0,
    where: Path | None = None,
    **execution: Any,
) -> Path:
    """Write the record of a run, diverged if it has no error; return its folder.

    Args:
        settings: of the run.
        test_error: in %, at the end of training.
        bn_test_error: likewise, after a BatchNorm pass; by default the same.
        seconds: of training; averaging takes one more.
        where: its folder; by default where the run would leave it.
        execution: what is other than `EXECUTION`.
    """
    folder = where or settings.run_folder
    folder.mkdir(parents=True)
    result = made_result(settings.run_id, test_error, bn_test_error, seconds, **execution)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings.record(), sort_keys=False))
    lines = [{"epoch": epoch, "test_error": test_error} for epoch in (1, 2)]
    lines[-1] |= result.get("phases", [{}])[-1]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def configured(folder: Path, config: dict[str, Any]) -> str:
    """Give a record another config and the run id that follows from it; return that."""
    result = json.loads((folder / "result.json").read_text())
    recipe = {key: config[key] for key in RECIPE if key in config}
    own = result["run_id"] = run_id(recipe, result["numerics_version"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "result.json").write_text(json.dumps(result))
    return own


def rows(*entries: tuple) -> pd.DataFrame:
    """Return rows as `read_cells` has them: (table, dataset, model, column, seed, error, …)."""
    made = [
        dict(zip([*CELL, "seed", "test_error"], entry[:6], strict=True))
        | {"run_id": "r", "status": "finished", "bn_test_error": entry[5], "epochs": 1}
        | {"method_seconds": 1.0, "averaging_seconds": 0.0, "device": "cpu", "execution": "x"}
        | {"modified": "False", "kept": True, "before_averaging": False}
        | (entry[6] if len(entry) > 6 else {})
        for entry in entries
    ]
    return pd.DataFrame(made, columns=COLUMNS)
