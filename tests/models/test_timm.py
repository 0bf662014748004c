"""timm networks by name."""

import re

import pytest
import torch

from phaseavg.models import timm_model


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 8), ("convnext_atto", 32), ("vit_tiny_patch16_224", 32), ("mixer_s16_224", 48)],
)
def test_a_network_fits_the_images_and_classes_of_the_data(name: str, size: int) -> None:
    with torch.device("meta"):
        model = timm_model(name, num_classes=7, in_channels=1, image_size=size)
        assert model(torch.empty(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet81", "???"])  # the second is close to none
def test_an_unknown_name_is_rejected_with_close_names(name: str) -> None:
    message = f"name={name!r}: timm has no such model; choices: resnet18, "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        timm_model(name, num_classes=10)
