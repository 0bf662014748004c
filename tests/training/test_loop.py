"""Compare a run with a literal Algorithm 1, and check its record."""

import copy
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Compose, history_of, result_of
from torch.nn.functional import cross_entropy

import train
from phaseavg.averaging import recompute_batchnorm
from phaseavg.config import Settings
from phaseavg.training.evaluation import Evaluation, evaluate
from phaseavg.training.optimizers import set_learning_rate
from phaseavg.training.parts import load_data, new_model


def algorithm_1(settings: Settings) -> tuple[torch.nn.Module, list[dict[str, Evaluation]]]:
    """Run the paper's Algorithm 1 line by line, with a zero-initialised average in float64."""
    data = load_data(settings, torch.device("cpu"))
    model = new_model(settings, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    step, epoch, ends = 0, 0, []
    for epochs, learning_rate in ((2, 0.1), (2, 0.01), (1, 0.001)):
        optimizer.param_groups[0]["lr"] = learning_rate
        theta_bar = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
        gamma = 0.9 ** (80 / epochs)
        for _ in range(epochs):
            model.train()
            for images, labels in data.train_batches(step, step + data.steps_per_epoch):
                optimizer.zero_grad()
                cross_entropy(model(images), labels).backward()
                optimizer.step()
                step += 1
            epoch += 1
            for average, theta in zip(theta_bar, model.parameters(), strict=True):
                average.mul_(gamma).add_(theta.detach().double(), alpha=1 - gamma)
        plain = evaluate(model, data.test_batches())
        recalibrated = copy.deepcopy(model)
        recompute_batchnorm(recalibrated, data.batchnorm_batches(epoch))
        with torch.no_grad():
            for average, theta in zip(theta_bar, model.parameters(), strict=True):
                theta.copy_(average / (1 - gamma**epochs))
        recompute_batchnorm(model, data.batchnorm_batches(epoch))
        ends.append(
            {
                "weights": plain,
                "bn": evaluate(recalibrated, data.test_batches()),
                "average": evaluate(model, data.test_batches()),
            }
        )
    return model, ends


def test_a_phasewise_run_is_algorithm_1(compose_settings: Compose) -> None:
    # Narrow networks are ill-conditioned: training would amplify the rounding of the average.
    settings = compose_settings(*TINY, "model.width=0.125", "save_weights=true")
    result = train.run(settings)
    expected, ends = algorithm_1(settings)
    data = load_data(settings, torch.device("cpu"))
    assert result["test_error"] == pytest.approx(
        evaluate(expected, data.test_batches()).error, abs=0.3
    )
    first, *_ = result["phases"]
    assert first["weights"]["error"] == ends[0]["weights"].error
    assert first["bn"]["error"] == ends[0]["bn"].error
    for phase, end in zip(result["phases"], ends, strict=True):
        assert phase["average"]["loss"] == pytest.approx(end["average"].loss, rel=1e-3)
        assert phase["average"]["error"] == pytest.approx(end["average"].error, abs=0.3)


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


def test_the_training_loss_is_the_mean_over_all_images(compose_settings: Compose) -> None:
    """A smaller last batch has a smaller weight."""
    settings = compose_settings(*TINY, "batch_size=300", "schedule.epochs=[1,1,1]")
    train.run(settings)
    data = load_data(settings, torch.device("cpu"))
    model = new_model(settings, data).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    total, wrong = 0.0, 0
    for images, labels in data.train_batches(0, 4):
        logits = model(images)
        loss = cross_entropy(logits, labels)
        total += loss.item() * len(labels)
        wrong += (logits.argmax(1) != labels).sum().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    first = history_of(settings)[0]["train"]
    assert first["images"] == 1000
    assert first["loss"] == pytest.approx(total / 1000, rel=1e-6)
    assert first["error"] == pytest.approx(100 * wrong / 1000)


def test_the_factor_scales_the_learning_rate_of_each_group() -> None:
    slow, fast = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [slow], "lr": 0.01}, {"params": [fast], "lr": 1.0}])
    for factor in (1.0, 0.1, 0.1, 0.01):
        set_learning_rate(optimizer, factor)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.01 * factor, 1.0 * factor])


@pytest.mark.slow
def test_a_compiled_run_with_autocast_trains_and_records_its_options(
    compose_settings: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test skips code generation, which takes a minute.
    compiled = []

    def eager(graph: Any, example_inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=eager))
    plain = train.run(compose_settings(*TINY))
    assert not compiled
    settings = compose_settings(*TINY, "execution.precision=bf16", "execution.compile=true")
    settings = settings.model_copy(update={"runs_dir": settings.runs_dir / "other"})
    result = train.run(settings)
    assert result["run_id"] == plain["run_id"]
    execution = result["provenance"][0]["execution"]
    assert execution["precision"] == "bf16"
    assert execution["compile"] is True
    assert compiled
    assert result["test_error"] != plain["test_error"]
    assert result["test_error"] < 100


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
