"""Targets are called only if they create an object of their field's kind."""

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Prompt, composed
from omegaconf import DictConfig, open_dict
from torch import nn

from phaseavg.config import check, check_record
from phaseavg.errors import UserError
from phaseavg.targets import KINDS, build

PLACES = [name for name in KINDS if name != "observers"]
HARMFUL = (
    *("os.system", "builtins.print", "sys.exit", "subprocess.Popen", "shutil.rmtree"),
    *("torch.save", "torch.hub.load", "numpy.save", "joblib.load", "pandas.read_pickle"),
    *("torchvision.utils.save_image", "phaseavg.runs.files.write_atomically"),
    *("phaseavg.config.json.loads", "phaseavg.config.json", "test_targets.a_class", "os", ""),
    *("timm.layers.helpers.Iterable", "torch.optim.optimizer.warnings.warn"),
)


a_class = Path  # a standard-library class under a name of this module


@pytest.fixture
def config() -> DictConfig:
    return composed("preset=demo")


def with_target(config: DictConfig, place: str, target: str, **arguments: Any) -> DictConfig:
    config = config.copy()
    with open_dict(config):
        config[place] = {"_target_": target, **arguments}
    return config


@pytest.mark.parametrize("place", PLACES)
def test_a_target_of_another_kind_is_rejected_without_a_call(
    config: DictConfig, place: str
) -> None:
    for target in HARMFUL:
        with pytest.raises(UserError, match=f"^{place}._target_={target}: ") as refused:
            check(with_target(config, place, target))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("inner", [lambda part: part, lambda part: [{"a": part}]])
def test_a_harmful_nested_target_is_rejected(config: DictConfig, inner: Any) -> None:
    layer = inner({"_target_": "os.getcwd"})
    changed = with_target(config, "model", "torchvision.models.resnet18", norm_layer=layer)
    with pytest.raises(UserError, match=r"^model\.norm_layer.*\._target_=os\.getcwd: "):
        check(changed)


@pytest.mark.parametrize("key", ["_args_", "_partial_"])
def test_hydras_call_options_are_rejected(config: DictConfig, key: str) -> None:
    changed = with_target(config, "model", "torchvision.models.resnet18", **{key: []})
    with pytest.raises(UserError, match=f"^model.{key}: there is no such key"):
        check(changed)


def record_of(config: DictConfig, **changes: Any) -> dict[str, Any]:
    return {**check(config).record(), **changes}


def test_a_record_may_only_name_allowed_targets(config: DictConfig) -> None:
    record = record_of(config)
    assert check_record(record).run_id == check(config).run_id
    older = {**record, "execution": {**record["execution"], "flipped_copy": True}}
    assert check_record(older) == check_record(record)
    del record["execution"]  # it may have been made by hand
    assert check_record(record).run_id == check(config).run_id
    model = {"_target_": "test_targets.Unimportable"}
    with pytest.raises(UserError, match="a record may only name"):
        check_record(record_of(config, model=model))
    with pytest.raises(UserError, match="no attribute 'Unimportable'"):
        check_record(record_of(config, model=model), ["test_targets"])
    for harmful in (
        "phaseavg.runs.files.write_atomically",
        "torchvision.io.read_file",
        "timm.models._helpers.load_state_dict",  # it reads pickles
        "torchvision.models._api.get_model",
    ):
        part = {"_target_": "torchvision.models.resnet18", "norm_layer": [{"_target_": harmful}]}
        with pytest.raises(UserError, match=f"_target_={harmful}: a record may only name"):
            check_record(record_of(config, model=part))


def test_interpolations_in_a_record_are_rejected(config: DictConfig) -> None:
    with pytest.raises(UserError, match="interpolations"):
        check_record(record_of(config, seed="${oc.env:HOME}"))


def test_what_a_function_returns_is_checked(config: DictConfig) -> None:
    part = check(with_target(config, "model", "test_targets.untyped")).model
    with pytest.raises(UserError, match=r"untyped: must create Linear, not Module"):
        build("model", part, nn.Linear, offered={"num_classes": 7, "in_channels": 1})


def untyped(num_classes, in_channels):
    return nn.Module()


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("torch.nn.Identity", {}),
        ("torchvision.models.resnet18", {}),
        ("timm.create_model", {"model_name": "resnet18"}),
        ("test_targets.untyped", {}),
    ],
)
def test_third_party_and_user_networks_are_accepted(
    config: DictConfig, target: str, arguments: dict[str, str]
) -> None:
    changed = with_target(config, "model", target, **arguments)
    assert check(changed).model["_target_"] == target


class Colour(Enum):
    RED = "red"


def annotated(
    file: Path,
    files: list[Path],
    layers: frozenset[int],
    colour: Colour,
    sizes: dict[str, tuple[int, ...]],
    rate: float = 0.5,
    depth: "Unreadable" = 3,  # noqa: F821 -- as people write them: a name that is not imported
    **rest: int,
) -> nn.Module:
    network = nn.Linear(1, 1)
    network.options = file, files, layers, colour.value, sizes, rate, depth, rest
    return network


def test_arguments_have_the_types_of_their_annotations(config: DictConfig) -> None:
    values = {"file": "a", "files": ["b"], "layers": [2, 1], "colour": "red", "sizes": {"c": [3]}}
    values |= {"depth": 2, "more": 1}
    settings = check(with_target(config, "model", "test_targets.annotated", **values, rate=1))
    assert (
        settings.run_id
        == check(with_target(config, "model", "test_targets.annotated", **values, rate=1.0)).run_id
    )
    expected = Path("a"), [Path("b")], {1, 2}, "red", {"c": (3,)}, 1.0, 2, {"more": 1}
    assert build("model", settings.model).options == expected
    assert settings.model["layers"] == [1, 2]  # a set has no order of its own
    mistakes = [("file", 3), ("rate", "0.5"), ("colour", "blue"), ("layers", [1.5])]
    mistakes += [("sizes", {"c": [4, "a"]}), ("sizes", {"c": 3})]
    for name, wrong in mistakes:
        changed = with_target(config, "model", "test_targets.annotated", **{**values, name: wrong})
        with pytest.raises(UserError, match=rf"^model\.{name}="):
            check(changed)


def through(**options: int) -> nn.Module:
    return nn.Linear(1, options["num_classes"])


@pytest.mark.parametrize("target", ["test_targets.through", "torchvision.models.resnet18"])
def test_a_config_may_repeat_offered_arguments(target: str) -> None:
    part = {"_target_": target, "num_classes": 7}
    network = build("model", part, offered={"num_classes": 7, "image_size": 8})
    assert [*network.modules()][-1].out_features == 7


@pytest.mark.parametrize("argument", [{"num_classes": 9}, {"device": "cpu"}])
def test_a_config_must_not_contradict_offered_arguments(argument: dict[str, object]) -> None:
    offered = {"num_classes": 7, "device": torch.device("cpu")}
    with pytest.raises(UserError, match=f"^model.{next(iter(argument))}=.*follows from the rest"):
        build("model", {"_target_": "test_targets.through", **argument}, offered=offered)


FAILING = {
    "constructor": ("class Net(nn.Module):\n def __init__(self, **_):\n  {}['a']\n", "KeyError"),
    "import": ("import nowhere_at_all\n", "ModuleNotFoundError"),
}


@pytest.mark.parametrize("where", FAILING)
def test_a_failing_part_is_named_before_its_traceback(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    text, error = FAILING[where]
    (tmp_path / "own").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "own")
    module = f"failing_{where}"
    (tmp_path / "own" / f"{module}.py").write_text(f"from torch import nn\n{text}")
    status, _, err = prompt(f"model={{_target_: {module}.Net}}", "dataset=digits", "tracking=none")
    first, second, *_ = err.splitlines()
    assert status == 1
    assert first.startswith("train.py: model")
    assert f"{module}.Net: {error}: " in first
    assert second.startswith("Traceback")
    assert f'{module}.py", line ' in err
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
