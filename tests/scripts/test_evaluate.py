"""`scripts/evaluate.py` reproduces the recorded loss and error."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from conftest import TINY, Compose, Prompt, assert_one_line
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
    message = "save_weights=true: safetensors cannot store the weights"
    assert_one_line(prompt(*run, "save_weights=true"), message)
    status, out, _ = prompt(*run)
    assert status == 0
    assert "from step 40;" in out


def test_what_a_record_must_not_be_gives_a_one_line_message_and_status_2(
    compose_settings: Compose, script: Prompt
) -> None:
    folder = make_record(compose_settings(*TINY), 5.0)
    weights = folder / "weights.safetensors"

    def refused(message: str) -> None:
        assert_one_line(script("evaluate", folder), message, "evaluate.py")

    refused("save_weights=true")
    safetensors.torch.save_file({"a": torch.zeros(9)}, weights, metadata={"run_id": "other"})
    refused("belongs to another run, other")
    safetensors.torch.save_file({"a": torch.zeros(9)}, weights, metadata={"run_id": folder.name})
    refused("damaged, or another network's")
    weights.write_bytes(weights.read_bytes()[:100])
    refused("damaged")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for target in ("os.getcwd", "made_records.made_result"):  # a stranger's code is not called
        config["dataset"] = {"_target_": target}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        refused(f"config.yaml: _target_={target}: a record may only name ")
    (folder / "config.yaml").write_text("{")
    refused("config.yaml: ")
