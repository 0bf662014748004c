"""Combinations of config groups, data sets and networks."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path

import conftest
import pytest
import torch
from conftest import REPOSITORY, Prompt, assert_one_line
from omegaconf import OmegaConf
from torch import nn

from phaseavg.config import Settings, check
from phaseavg.data import Batch
from phaseavg.errors import UserError
from phaseavg.targets import build
from phaseavg.training import parts

CONF = REPOSITORY / "conf"
GROUPS = {
    folder: sorted(path.stem for path in (CONF / folder).glob("*.yaml"))
    for folder in ("preset", "dataset", "model", "optimizer", "schedule", "averaging", "tracking")
}
NEEDED = {"timm": ["model.name=resnet18"]}
"""Overrides without which an option of a config group is incomplete."""

IMAGES = {  # classes, channels, size
    "cifar10": (10, 3, 32),
    "cifar100": (100, 3, 32),
    "svhn": (10, 3, 32),
    "digits": (10, 1, 8),
    "imagenet": (1000, 3, 224),
}


def composed(*overrides: str) -> Settings:
    return check(conftest.composed(*overrides))


def test_a_chosen_option_has_priority_over_what_others_set() -> None:
    """With each network; the options of the other groups take turns."""
    turns = {group: cycle(options) for group, options in GROUPS.items()}
    for model in GROUPS["model"]:
        choice = {group: next(options) for group, options in turns.items()}
        options = [f"{group}={option}" for group, option in choice.items()]
        settings = composed(*options, *NEEDED.get(model, []))
        for group in choice.keys() - {"preset"}:
            expected = OmegaConf.load(CONF / group / f"{choice[group]}.yaml")
            target = OmegaConf.select(expected, f"{group}._target_") or expected._target_
            assert getattr(settings, group)["_target_"] == target, choice


@pytest.mark.parametrize("model", ["cnn13", "resnet34", "wrn28_10", "densenet121"])
@pytest.mark.parametrize("scale", ["tenth", "digits"])
def test_a_scaled_network_builds_and_its_options_can_be_overridden(scale: str, model: str) -> None:
    settings = composed(f"scale={scale}", f"model={model}")
    full = composed(f"model={model}")
    assert settings.run_id != full.run_id
    images = IMAGES["digits" if scale == "digits" else "cifar100"]
    assert build_model(settings, images)[1].shape == (2, images[0])
    assert (settings.weight_decay, settings.optimizer) == (full.weight_decay, full.optimizer)
    changed = composed(f"scale={scale}", f"model={model}", "model.width=0.5", "batch_size=64")
    assert (changed.model["width"], changed.batch_size) == (0.5, 64)


@pytest.mark.parametrize("option", [name for name in GROUPS["schedule"] if name[0].isdecimal()])
def test_a_schedule_matches_its_name(option: str) -> None:
    for dataset in ("cifar100", "imagenet"):
        settings = composed(f"dataset={dataset}", f"schedule={option}")
        assert "-".join(map(str, settings.schedule["epochs"])) == option


def test_schedules_without_numbers_have_the_length_of_the_paper() -> None:
    decayed, cosine = (composed(f"schedule={name}").schedule for name in ("decayed", "cosine"))
    assert decayed["epochs"] == composed().schedule["epochs"] == [80, 40, 40]
    assert decayed["factors"] == composed().schedule["factors"]
    assert decayed["shape"]["_target_"] == "phaseavg.phases.Decayed"
    assert (cosine["epochs"], cosine["factors"]) == ([160], [1])
    assert cosine["shape"] == {"_target_": "phaseavg.phases.Cosine", "per": "epoch"}


def test_when_and_how_to_average_are_chosen_independently() -> None:
    for when, target in (("phasewise", "Phasewise"), ("end", "AtEnd")):
        for how in (path.stem for path in (CONF / "averaging/weights").glob("*.yaml")):
            averaging = composed(f"averaging={when}", f"averaging/weights={how}").averaging
            assert averaging["_target_"].endswith(target)
            assert averaging["weights"]["_target_"].lower().endswith(f".{how.replace('_', '')}")
    for how in ("uniform", "rna"):  # for short
        expected = composed("averaging=phasewise", f"averaging/weights={how}").averaging
        assert composed(f"averaging={how}").averaging == expected


def test_every_optimizer_has_the_papers_weight_decay_and_the_adaptive_ones_its_rate() -> None:
    for name in GROUPS["optimizer"]:
        for model, decay in (("cnn13", 1e-4), ("resnet34", 5e-4)):
            optimizer = composed(f"optimizer={name}", f"model={model}").optimizer
            optimizer = optimizer.get("inner", optimizer)
            assert optimizer["weight_decay"] == decay
            assert optimizer["lr"] == (0.1 if name in ("sgd", "lookahead") else 1e-3)
    other = composed("optimizer=lookahead", "optimizer@optimizer.inner=adabound").optimizer
    assert other["inner"] == composed("optimizer=adabound").optimizer


def test_imagenet_brings_the_papers_batch_and_schedule_which_can_be_changed() -> None:
    settings = composed("dataset=imagenet")
    assert settings.batch_size == 256
    assert settings.schedule["epochs"] == [60, 30, 30]
    assert settings.model["_target_"] == "phaseavg.models.resnet50"
    assert settings.weight_decay == settings.optimizer["weight_decay"] == 1e-4
    changed = composed("dataset=imagenet", "batch_size=64", "schedule=80-40-40", "model=vgg16")
    assert (changed.batch_size, changed.schedule["epochs"]) == (64, [80, 40, 40])
    assert changed.model["_target_"] == "phaseavg.models.vgg16"
    assert composed("dataset=cifar10").batch_size == 128


def build_model(settings: Settings, images: tuple[int, int, int]) -> tuple[nn.Module, torch.Tensor]:
    """Return a network for images of some (classes, channels, size), and two logits."""
    classes, channels, size = images
    offered = {"num_classes": classes, "in_channels": channels, "image_size": size}
    network = build("model", settings.model, offered=offered)
    return network, network(torch.empty(2, channels, size, size))


@pytest.mark.parametrize("model", GROUPS["model"])
@pytest.mark.parametrize("dataset", IMAGES)
def test_each_valid_pair_builds(dataset: str, model: str) -> None:
    digits = ["model.pools=1"] if (dataset, model) == ("digits", "cnn13") else []
    options = (f"dataset={dataset}", f"model={model}", *digits, *NEEDED.get(model, []))
    invalid = model in ("resnet50", "resnext50", "vgg16") and dataset != "imagenet"
    message = f"{model} needs colour images of at least 64 pixels"
    with pytest.raises(UserError, match=message) if invalid else nullcontext():
        with torch.device("meta"):
            network, logits = build_model(composed(*options), IMAGES[dataset])
        assert logits.shape == (2, IMAGES[dataset][0])
        assert all(parameter.is_meta for parameter in network.parameters())


class WrongLogits(nn.Linear):
    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__(image_size, num_classes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=cnn13"], "pools=2 reduces 8×8 images"),
        # 1,000 = 9 · 111 + 1: BatchNorm cannot take the deviation of one image of one pixel.
        (
            ["model=resnet34", "batch_size=111"],
            "with batch_size=111, down to 1×1×8×8: ValueError: Exp",
        ),
        (
            ["model=resnet34", "model._target_=test_combinations.WrongLogits", "~model.width"],
            "output shape (2, 1, 8, 10) instead of (2, 10)",
        ),
    ],
)
def test_incompatible_parts_print_one_line(
    prompt: Prompt, tmp_path: Path, overrides: list[str], message: str
) -> None:
    output = prompt("dataset=digits", *overrides)
    assert_one_line(output, message)
    assert output[1] == ""
    assert output[2].startswith("train.py: model")
    assert not list(tmp_path.iterdir())


def test_checking_a_network_does_not_change_it() -> None:
    settings = composed("preset=demo", "model.width=0.05", "execution.device=cpu")
    data = parts.load_data(settings, torch.device("cpu"))
    model = parts.new_model(settings, data)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.num_batches_tracked == 0 for norm in norms)
    assert all((norm.running_mean == 0).all() for norm in norms)


class Box(nn.Module):
    def __init__(self, size: int, steps: list | None = None, named: dict | None = None) -> None:
        super().__init__()
        self.size, self.steps, self.named = size, steps, named


def test_parts_in_lists_and_mappings_are_checked_and_built() -> None:
    inner = {"_target_": "test_combinations.Box", "size": 2}
    part = {**inner, "steps": [1, inner], "named": {"a": inner, "b": 3}}
    known = composed("dataset=digits").model_dump(mode="json")
    typed = check(OmegaConf.create({**known, "model": part})).model
    box = build("model", typed)
    assert [box.steps[0], box.steps[1].size, box.named["a"].size, box.named["b"]] == [1, 2, 2, 3]
    part["steps"][1] = {**inner, "size": "wide"}
    with pytest.raises(UserError, match=r"model.steps\[1\].size='wide': .*integer"):
        check(OmegaConf.create({**known, "model": part}))


class OwnData:
    """A user's data set of one training image and a test image for each label."""

    num_classes, channels, image_size = 3, 1, 8
    train_size = test_size = batch_size = steps_per_epoch = 1
    device = torch.device("cpu")

    def __init__(self, batch_size: int, labels: list[int]) -> None:
        self.batches = [(torch.zeros(1, 1, 8, 8), torch.tensor([label])) for label in labels]

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        return iter([(torch.zeros(1, 1, 8, 8), torch.tensor([0]))])

    def batchnorm_batches(self, epoch: int, limit: int | None = None) -> Iterator[Batch]:
        return self.train_batches(0, 1)

    def test_batches(self) -> Iterator[Batch]:
        return iter(self.batches)


def test_an_inconsistent_data_set_is_rejected() -> None:
    def load(*labels: int) -> None:
        part = {"_target_": f"{__name__}.OwnData", "labels": [*labels]}
        settings = composed().model_copy(update={"dataset": part})
        parts.load_data(settings, torch.device("cpu"))

    load(2)
    with pytest.raises(UserError, match=r"OwnData: test label 3: must lie between 0 and 2"):
        load(3)
    with pytest.raises(UserError, match="OwnData: there is no test image"):
        load()
