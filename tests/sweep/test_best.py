"""Hyperparameter search: Optuna's best values are printed and saved with the runs."""

from pathlib import Path

import pytest
from conftest import TINY, Prompt
from omegaconf import OmegaConf

pytest.importorskip("optuna")


def test_the_best_values_of_a_search_are_printed_and_saved(prompt: Prompt, tmp_path: Path) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
    tiny = (*TINY, "schedule.epochs=[1,1,1]")
    status, out, _ = prompt("-m", *tiny, *search, "averaging.weights.gamma0=interval(0.5,0.9)")
    assert status == 0
    (path,) = tmp_path.glob("runs/.optuna/*/optimization_results.yaml")
    *_, values, where = out.splitlines()
    assert Path(where).resolve() == path
    best = OmegaConf.load(path)
    assert f"best_value: {best.best_value}" in values
    assert 0.5 <= best.best_params["averaging.weights.gamma0"] <= 0.9
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2
