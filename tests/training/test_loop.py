"""The metrics and the record of a run."""

import re
from pathlib import Path

import pytest
import torch
from conftest import TINY, Compose, history_of, result_of

import train
from phaseavg.training.optimizers import set_learning_rate


def test_the_first_phase_does_not_depend_on_averaging(
    compose_settings: Compose,
) -> None:
    kinds = ("none", "phasewise", "end")
    runs = {kind: compose_settings(*TINY, f"averaging={kind}") for kind in kinds}
    for settings in runs.values():
        train.run(settings)
    none, phasewise, end = (history_of(runs[kind]) for kind in kinds)
    for key in ("train", "weights", "bn"):
        column = [[line.get(key) for line in history] for history in (none, phasewise, end)]
        assert column[0][:2] == column[1][:2]
        assert column[0] == column[2]  # averaging=end is plain SGD before its last step
    assert none[2]["train"] != phasewise[2]["train"]
    assert [line.get("replaced") for line in none] == [None, False, None, False, False]
    assert [line.get("replaced") for line in phasewise] == [None, True, None, True, True]
    assert [line.get("replaced") for line in end] == [None, False, None, False, True]
    assert "average" not in none[-1]
    assert "average" in end[1]  # evaluated at each phase end, applied only at the last


def test_every_epoch_is_recorded(compose_settings: Compose) -> None:
    settings = compose_settings(*TINY, "evaluation.every=2", "evaluation.average_every=1")
    train.run(settings)
    history = history_of(settings)
    assert [line["epoch"] for line in history] == [1, 2, 3, 4, 5]
    assert [line["phase"] for line in history] == [1, 1, 2, 2, 3]
    assert [line["step"] for line in history] == [8, 16, 24, 32, 40]
    assert [line["learning_rate"] for line in history] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001]
    )
    for line in history:
        assert min(*line["train"].values(), line["seconds"]["train"], line["images_per_second"]) > 0
        assert line["average"].keys() >= {"loss", "error"}
    for key in ("weights", "bn"):
        assert [key in line for line in history] == [False, True, False, True, True]


def test_the_factor_scales_the_learning_rate_of_each_group() -> None:
    slow, fast = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [slow], "lr": 0.01}, {"params": [fast], "lr": 1.0}])
    for factor in (1.0, 0.1, 0.1, 0.01):
        set_learning_rate(optimizer, factor)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.01 * factor, 1.0 * factor])


def test_a_record_has_the_provenance(compose_settings: Compose, tmp_path: Path) -> None:
    settings = compose_settings(*TINY, "data_dir=/somewhere/private")
    result = train.run(settings)
    assert result_of(settings) == result
    assert result["status"] == "finished"
    assert result["test_error"] == result["phases"][-1]["average"]["error"]
    assert result["best_test_error"] <= result["test_error"]
    assert (result["epochs"], result["steps"]) == (5, 40)
    assert result["seconds"]["total"] >= result["seconds"]["train"] > 0
    assert result["images_per_second"] > 0
    assert result["peak_memory_bytes"] > 1e7
    (provenance,) = result["provenance"]
    assert provenance["execution"]["device"] == "cpu"
    assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(provenance["git"]) == {"commit", "modified"}
    assert re.fullmatch("[0-9a-f]{16}", provenance["source"])
    for path in settings.run_folder.iterdir():  # records must not contain paths of the machine
        assert "/somewhere" not in path.read_text()
        assert str(tmp_path) not in path.read_text()
