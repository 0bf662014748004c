"""Records of finished runs as pandas frames."""

import json
from pathlib import Path

import pandas as pd
import yaml

from phaseavg.errors import UserError


def read_runs(folder: Path) -> pd.DataFrame:
    """Return a row per finished run below `folder`, sorted by run id.

    Columns: run_id, dataset, model, optimizer, averaging (the last part of each target's name, in
    lower case), seed, and of the run's result: status, test_error (%), seconds, device_name, torch,
    commit, modified. `path` is the run's folder.

    Raises:
        UserError: if there are none.
    """
    rows = []
    for path in sorted(folder.glob("*/result.json")):
        result = json.loads(path.read_text())
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        parts = {
            part: config[part]["_target_"].rpartition(".")[2].lower()
            for part in ("dataset", "model", "optimizer", "averaging")
        }
        rows.append(
            {
                "run_id": result["run_id"],
                **parts,
                "seed": config["seed"],
                "status": result["status"],
                "test_error": result.get("test_error"),
                "best_test_error": result.get("best_test_error"),
                "epochs": result["epochs"],
                "seconds": result["seconds"],
                "device_name": result["execution"]["device_name"],
                "precision": result["execution"]["precision"],
                "torch": result["versions"]["torch"],
                "commit": result["git"]["commit"],
                "modified": result["git"]["modified"],
                "path": path.parent,
            }
        )
    if not rows:
        raise UserError(f"{folder}: there is no finished run in it; name a folder with runs")
    return pd.DataFrame(rows)


def read_metrics(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics of `runs`, a row per run and epoch, with the run's averaging and seed."""
    frames = [
        pd.read_json(run.path / "metrics.jsonl", lines=True).assign(
            run_id=run.run_id, averaging=run.averaging, seed=run.seed
        )
        for run in runs.itertuples()
    ]
    return pd.concat(frames, ignore_index=True)
