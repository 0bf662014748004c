"""timm networks by name."""

import re

import pytest
import torch
from conftest import Prompt

from phaseavg.models import timm_model


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 8), ("convnext_atto", 32), ("vit_tiny_patch16_224", 32), ("mixer_s16_224", 48)],
)
def test_a_network_fits_the_images_and_classes_of_the_data(name: str, size: int) -> None:
    with torch.device("meta"):
        model = timm_model(name, num_classes=7, in_channels=1, image_size=size)
        assert model(torch.empty(2, 1, size, size)).shape == (2, 7)


def test_initial_weights_depend_on_the_seed() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(timm_model("test_resnet", 3).parameters())

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet81", "resnet18, "),
        ("resnet18.a1_in1k", "resnet"),  # the tag of weights, which are not loaded
        ("???", "resnet18, "),
    ],
)
def test_an_unknown_name_is_rejected_with_close_names(name: str, close: str) -> None:
    message = f"name={name!r}: timm has no such model; choices: {close}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        timm_model(name, num_classes=10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=timm"], "model.name: is missing; add model.name=…"),
        (["model=timm", "model.name=resnet81"], "model: name='resnet81': timm has no such model; "),
        (
            ["model=timm", "model.name=test_resnet", "+model.num_classes=9"],
            "model.num_classes=9: follows from the rest of the config; leave it out",
        ),
    ],
)
def test_train_py_reports_mistakes_in_one_line(
    prompt: Prompt, overrides: list[str], message: str
) -> None:
    status, out, err = prompt("dataset=digits", "tracking=none", *overrides)
    assert (status, out) == (2, "")
    assert err.startswith(f"train.py: {message}")
    assert err.count("\n") == 1
