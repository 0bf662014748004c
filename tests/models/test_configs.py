"""Model configs: the networks built, and the parameters and costs in the header comments."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[2] / "conf" / "model"
OTHERS = ("cnn13_digits", "timm")
CONFIGS = sorted(path for path in FOLDER.glob("*.yaml") if path.stem not in OTHERS)
CIFAR = {"cnn13", "resnet34", "wrn28_10", "densenet121"}
IMAGENET = {"resnet50", "resnext50", "vgg16"}


def match_header(pattern, path):
    """Return the groups of `pattern` in the header comment of a config."""
    header = path.read_text().partition("model:")[0].replace("\n#", " ")
    return re.search(pattern, re.sub(" +", " ", header)).groups()


def test_each_network_of_the_paper_has_a_config():
    assert {path.stem for path in CONFIGS} == CIFAR | IMAGENET


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_build_their_network_with_its_defaults(path):
    config = OmegaConf.load(path)
    target = get_object(config.model._target_)
    assert target.__name__.lower() == path.stem
    defaults = inspect.signature(target).parameters
    options = {name: value for name, value in config.model.items() if name != "_target_"}
    assert options == {name: defaults[name].default for name in options}
    assert set(options) == set(defaults) - {"num_classes", "in_channels", "image_size"}
    expected = 1e-4 if path.stem in IMAGENET | {"cnn13"} else 5e-4
    assert config.weight_decay == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_headers_report_parameters_and_cost(path):
    count, classes = match_header(r"([\d,]+) parameters for (\d+) classes", path)
    with torch.device("meta"):
        model = instantiate(OmegaConf.load(path).model, num_classes=int(classes)).eval()
    assert f"{sum(p.numel() for p in model.parameters()):,}" == count

    gigaflop, size = match_header(r"([\d.]+) GFLOP per training image of (\d+)×\2", path)
    assert size == ("224" if path.stem in IMAGENET else "32")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, int(size), int(size), device="meta"))
    flop = 3 * counter.get_total_flops()  # backward is twice forward
    assert f"{flop / 1e9:.3g}" == gigaflop
