"""`scripts/evaluate.py` finds what the run has recorded."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import yaml
from conftest import REPOSITORY, TINY
from made_records import keep

import train
from phaseavg.config import Settings


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate", REPOSITORY / "scripts/evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def finished(compose_settings: Callable[..., Settings]) -> tuple[Path, dict]:
    settings = compose_settings(*TINY, "weights=final")
    result = train.run(settings)
    return settings.runs_dir / result["run_id"], result


def test_the_kept_weights_give_the_recorded_loss_and_error(
    script: ModuleType, finished: tuple[Path, dict]
) -> None:
    folder, result = finished
    found = script.evaluate_run(folder, Path("data"), "cpu")
    assert found.loss == result["test_loss"]
    assert found.error == result["test_error"]


def test_missing_and_damaged_weights_get_one_line_and_status_2(
    script: ModuleType,
    finished: tuple[Path, dict],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = finished
    weights = folder / "weights.safetensors"

    def said(*arguments: str) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        assert script.main() == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file(tensors, weights, metadata={"run_id": "other"})
    assert "is of another run, other" in said(str(folder))
    weights.write_bytes(weights.read_bytes()[:100])
    assert "damaged" in said(str(folder))
    weights.unlink()
    assert "weights=final" in said(str(folder))
    assert "config.yaml" in said(str(folder / "nowhere"))
    weights.touch()
    for content in ("", "- a", "{"):
        (folder / "config.yaml").write_text(content)
        assert "config.yaml: damaged" in said(str(folder))


@pytest.mark.parametrize("target", ["os.getcwd", "made_records.made_result"])
def test_a_strangers_config_imports_and_calls_nothing(
    script: ModuleType,
    compose_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
) -> None:
    folder = keep(compose_settings(*TINY), 5.0)
    (folder / "weights.safetensors").touch()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["dataset"] = {"_target_": target}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(folder)])
    assert script.main() == 2
    said = capsys.readouterr().err
    assert f"config.yaml: _target_={target}: a record may only name phaseavg, " in said
    assert said.count("\n") == 1
