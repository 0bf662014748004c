"""Records of finished runs as pandas frames."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from phaseavg.errors import UserError


def _row(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text())
    config = dict(yaml.safe_load((folder / "config.yaml").read_text()))

    def made_with(kind: str, key: str) -> str:
        entries = (str(entry[kind][key]) for entry in result["provenance"])
        return " + ".join(dict.fromkeys(entries))

    settings = pd.json_normalize(config).iloc[0].drop("seed")
    return {
        "run_id": result["run_id"],
        **{
            part: config[part]["_target_"].rpartition(".")[2].lower()
            for part in ("dataset", "model", "optimizer", "averaging")
        },
        "seed": config["seed"],
        "status": result["status"],
        "test_error": result.get("test_error"),
        "best_test_error": result.get("best_test_error"),
        "epochs": result["epochs"],
        "seconds": result["seconds"],
        "device_name": made_with("execution", "device_name"),
        "cpu_capability": made_with("execution", "cpu_capability"),
        "threads": made_with("execution", "threads"),
        "precision": made_with("execution", "precision"),
        "torch": made_with("versions", "torch"),
        "commit": made_with("git", "commit"),
        "modified": made_with("git", "modified"),
        "path": folder,
        **{key: str(item) if isinstance(item, list) else item for key, item in settings.items()},
    }


def read_runs(folder: Path) -> pd.DataFrame:
    """Return a row per finished run below `folder`, sorted by run id.

    Columns: run_id, dataset, model, optimizer, averaging (the last part of each target's name, in
    lower case), seed; of the result: status, test_error and best_test_error (%), epochs, seconds;
    with what it was computed: device_name, cpu_capability, threads, precision, torch, commit,
    modified (joined by ` + ` where a run was continued with another); `path`, the run's folder; and
    the whole config, by the names that an override has at the prompt.

    Raises:
        UserError: if there are none, or a record is damaged.
    """
    rows = []
    for path in sorted(folder.glob("*/result.json")):
        try:
            rows.append(_row(path.parent))
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError) as error:
            raise UserError(
                f"{path.parent}: a damaged record ({type(error).__name__}); "
                "remove the folder and repeat the run"
            ) from error
    if not rows:
        raise UserError(f"{folder}: there is no finished run in it; name a folder with runs")
    return pd.DataFrame(rows)


def read_metrics(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics of `runs`, a row per run and epoch, with the run's averaging and seed."""
    frames = [
        pd.read_json(path / "metrics.jsonl", lines=True).assign(
            run_id=run_id, averaging=averaging, seed=seed
        )
        for path, run_id, averaging, seed in zip(
            runs["path"], runs["run_id"], runs["averaging"], runs["seed"], strict=True
        )
    ]
    return pd.concat(frames, ignore_index=True)
