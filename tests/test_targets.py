"""Targets are called only if they give what their place takes."""

from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Prompt
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict
from torch import nn

from phaseavg.config import check
from phaseavg.errors import UserError
from phaseavg.targets import KINDS, build

PLACES = [name for name in KINDS if name != "watch"]
HARMFUL = (
    *("os.system", "builtins.print", "sys.exit", "subprocess.Popen", "shutil.rmtree", "this.d"),
    *("torch.save", "torch.hub.load", "numpy.save", "joblib.load", "pandas.read_pickle"),
    *("torchvision.utils.save_image", "phaseavg.runs.files.write_atomically"),
    *("phaseavg.config.json.loads", "test_targets.nothing", "test_targets.a_class", "os", ""),
)


def nothing() -> None:
    raise AssertionError("called")


a_class = Path  # another module's, under a name of one's own


@pytest.fixture(scope="module")
def config() -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", ["preset=demo"])


def with_target(config: DictConfig, place: str, target: str) -> DictConfig:
    config = config.copy()
    with open_dict(config):
        config[place] = {"_target_": target}
    return config


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_such_part_is_refused_in_one_line_without_being_called(
    config: DictConfig, place: str
) -> None:
    for target in HARMFUL:
        with pytest.raises(UserError, match=f"^{place}._target_={target}: ") as refused:
            check(with_target(config, place, target))
        assert "\n" not in str(refused.value)


def test_an_inner_part_is_refused_likewise(config: DictConfig) -> None:
    changed = config.copy()
    with open_dict(changed):
        changed.averaging.weights = {"_target_": "os.getcwd"}
    with pytest.raises(UserError, match=r"^averaging\.weights\._target_=os\.getcwd: "):
        check(changed)


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
def test_networks_of_others_and_of_ones_own_are_taken(
    config: DictConfig, target: str, arguments: dict[str, str]
) -> None:
    changed = with_target(config, "model", target)
    with open_dict(changed):
        changed.model.update(arguments)
    assert check(changed).model["_target_"] == target


def through(**options: int) -> nn.Module:
    return nn.Linear(1, options["num_classes"])


@pytest.mark.parametrize("target", ["test_targets.through", "torchvision.models.resnet18"])
def test_what_the_program_knows_may_be_named_and_reaches_any_keywords(target: str) -> None:
    part = {"_target_": target, "num_classes": 7}
    network = build("model", part, offered={"num_classes": 7, "image_size": 8})
    assert [*network.modules()][-1].out_features == 7


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ({"num_classes": 9}, "num_classes=9: must be 7, which follows from the rest"),
        ({"num_classes": 7.0}, "num_classes=7.0: must be 7, "),
        ({"image_size": True}, "image_size=True: must be 1, "),
        ({"device": "cpu"}, "device: follows from the rest of the config; leave it out"),
    ],
)
def test_what_differs_from_what_the_program_knows_is_refused(
    argument: dict[str, object], told: str
) -> None:
    offered = {"num_classes": 7, "image_size": 1, "device": torch.device("cpu")}
    with pytest.raises(UserError, match=f"^model.{told}"):
        build("model", {"_target_": "test_targets.through", **argument}, offered=offered)


FAILING = {
    "constructor": ("class Net(nn.Module):\n def __init__(self, **_):\n  {}['a']\n", "KeyError", 4),
    "syntax": ("class Net(\n", "SyntaxError", 2),
    "import": ("import nowhere_at_all\n", "ModuleNotFoundError", 2),
    "module": ("raise RuntimeError('no')\n", "RuntimeError", 2),
}


@pytest.mark.parametrize("where", FAILING)
def test_a_part_that_fails_is_named_with_its_file_before_the_traceback(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    text, error, line = FAILING[where]
    (tmp_path / "own").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "own")
    module = f"failing_{where}"
    (tmp_path / "own" / f"{module}.py").write_text(f"from torch import nn\n{text}")
    status, _, err = prompt(f"model={{_target_: {module}.Net}}", "dataset=digits", "tracking=none")
    first, second, *_ = err.splitlines()
    assert status == 1
    assert f"{tmp_path}/own/{module}.py, line {line}: {error}" in first
    assert first.startswith("train.py: model")
    assert second.startswith("Traceback")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
