"""`scripts/evaluate.py` reproduces the recorded loss and error."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from conftest import TINY, Compose, Prompt
from made_records import make_record
from torch import nn

import train
from phaseavg.runs.weights import load_weights
from phaseavg.training.evaluation import evaluate_run
from phaseavg.training.trajectory import read_last_weight, read_weights_after


class Tied(nn.Module):
    """A network with a tied weight; the last layer's name is the second name.

    A buffer shares some of it; another one, on request, is nothing that safetensors can hold.
    """

    def __init__(self, num_classes: int, image_size: int, sparse: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(image_size**2, num_classes)
        self.last = nn.Linear(image_size**2, num_classes)
        self.last.weight = self.first.weight
        self.register_buffer("row", self.first.weight.detach()[0])
        if sparse:
            self.register_buffer("zeros", torch.zeros(2, 2).to_sparse())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.first(images.flatten(1)) + self.last(images.flatten(1)).square()


TIED = (f"model._target_={__name__}.Tied", "~model.width", "~model.pools", "save_trajectory=epochs")


@pytest.fixture(params=[(), TIED], ids=["plain", "tied"])
def finished(request: pytest.FixtureRequest, compose_settings: Compose) -> tuple[Path, dict]:
    settings = compose_settings(*TINY, "save_weights=true", *request.param)
    result = train.run(settings)
    return settings.runs_dir / result["run_id"], result


def test_saved_weights_give_the_recorded_loss_and_error(finished: tuple[Path, dict]) -> None:
    folder, result = finished
    found = evaluate_run(folder, Path("data"), "cpu", [__name__])
    assert found.loss == result["test_loss"]
    assert found.error == result["test_error"]


@pytest.mark.parametrize("finished", [TIED], indirect=True)
def test_tied_weights_are_saved_once_and_loaded_for_every_name(finished: tuple[Path, dict]) -> None:
    folder, _ = finished
    model = Tied(10, 8)
    load_weights(model, folder / "weights.safetensors", folder.name)
    kept = model.state_dict()
    with safetensors.safe_open(folder / "weights.safetensors", "pt") as file:
        assert set(file.keys()) == {"first.weight", "first.bias", "last.bias"}
    trajectory = folder / "trajectory"
    assert read_weights_after(trajectory, 0).keys() == kept.keys()
    last = read_weights_after(trajectory, 40)["last.weight"]
    assert torch.equal(read_last_weight(trajectory, 40), last)


def test_a_run_whose_weights_cannot_be_saved_finishes_without_them(prompt: Prompt) -> None:
    run = (*TINY, *TIED[:-1], "+model.sparse=true")
    status, _, err = prompt(*run, "save_weights=true")
    assert status == 2
    assert err.startswith("train.py: save_weights=true: safetensors cannot store the weights")
    assert err.count("\n") == 1
    status, out, _ = prompt(*run)
    assert status == 0
    assert "from step 40;" in out


def test_what_a_record_must_not_be_gives_a_one_line_message_and_status_2(
    compose_settings: Compose, script: Prompt
) -> None:
    folder = make_record(compose_settings(*TINY), 5.0)
    weights = folder / "weights.safetensors"

    def read_error() -> str:
        status, _, message = script("evaluate", folder)
        assert status == 2
        assert message.count("\n") == 1
        return message

    assert "save_weights=true" in read_error()
    safetensors.torch.save_file({"a": torch.zeros(9)}, weights, metadata={"run_id": "other"})
    assert "belongs to another run, other" in read_error()
    safetensors.torch.save_file({"a": torch.zeros(9)}, weights, metadata={"run_id": folder.name})
    assert "damaged, or another network's" in read_error()
    weights.write_bytes(weights.read_bytes()[:100])
    assert "damaged" in read_error()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for target in ("os.getcwd", "made_records.made_result"):  # a stranger's code is not called
        config["dataset"] = {"_target_": target}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        assert f"config.yaml: _target_={target}: a record may only name " in read_error()
    (folder / "config.yaml").write_text("{")
    assert "config.yaml: " in read_error()
