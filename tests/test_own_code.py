"""A user's own part: its code changes without a version, so nothing is taken for its result."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Prompt

from phaseavg.targets import _defaults

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, scale: float = {default}, more: dict | None = None):
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(64, num_classes)

    def forward(self, images):
        return self.layer(images.flatten(1) * self.scale)
"""
PART = "_target_: own_net.Net\nscale: {scale}\nmore: {{kernel: 3}}\n"
SHORT = ("dataset=digits", "model=net", "schedule.epochs=[2,1,1]", "tracking=none")


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the file of a network that `--config-dir mine model=net` selects."""
    monkeypatch.syspath_prepend(tmp_path / "mine")
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/net.yaml").write_text(PART.format(scale="1.0"))
    (tmp_path / "mine/own_net.py").write_text(CODE.format(default="1.0"))
    yield tmp_path / "mine/own_net.py"
    forget()


def forget() -> None:
    """Forget the module, as a new process would."""
    sys.modules.pop("own_net", None)
    _defaults.cache_clear()


def change_default(net: Path, default: str) -> None:
    net.write_text(CODE.format(default=default) + "# of another size, for Python's cache\n")
    forget()


def test_a_value_that_equals_the_default_is_part_of_the_id(
    net: Path, prompt: Prompt, tmp_path: Path
) -> None:
    assert prompt("--config-dir", "mine", *SHORT)[0] == 0
    (net.parent / "model/net.yaml").write_text(PART.format(scale="2.0"))
    change_default(net, "2.0")
    status, out, _ = prompt("--config-dir", "mine", *SHORT)
    assert (status, "finished before" in out) == (0, False)
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2


def test_a_prefix_of_other_code_is_not_used_and_the_record_names_the_code(
    net: Path, prompt: Prompt, tmp_path: Path
) -> None:
    command = ("--config-dir", "mine", "-m", *SHORT, "averaging=none,phasewise")
    assert prompt(*command)[0] == 0
    before = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")]
    assert [result["inherited"]["epochs"] for result in before] == [2, 2]
    change_default(net, "2.0")
    for path in tmp_path.glob("runs/digits-*"):  # what a user removes who forgets runs/shared
        shutil.rmtree(path)
    assert prompt(*command)[0] == 0
    after = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/result.json")]
    assert [result["inherited"]["epochs"] for result in after] == [2, 2]
    codes = [{str(r["provenance"][-1]["own_code"]) for r in results} for results in (before, after)]
    assert len(codes[0]) == len(codes[1]) == 1
    assert codes[0] != codes[1]
    assert len(list((tmp_path / "runs/shared").iterdir())) == 2


def test_the_recorded_overrides_name_the_config_folder_and_the_primary_config(
    net: Path, prompt: Prompt, tmp_path: Path
) -> None:
    (net.parent / "study.yaml").write_text("defaults: [config, _self_]\nbatch_size: 100\n")
    typed = ("--config-dir", "mine", "--config-name", "study", *SHORT)
    assert prompt(*typed)[0] == 0
    (path,) = tmp_path.glob("runs/*/result.json")
    recorded = json.loads(path.read_text())["overrides"]
    assert recorded[:2] == ["--config-dir=mine", "--config-name=study"]
    status, out, _ = prompt(*recorded, "tracking=none")
    assert (status, "finished before" in out) == (0, True)


def test_a_dry_run_shows_arguments_that_are_mappings(net: Path, prompt: Prompt) -> None:
    status, out, _ = prompt("--config-dir", "mine", *SHORT, "dry_run=true")
    assert status == 0
    assert "Net(scale=1.0, more={'kernel': 3})" in out


def test_tables_are_found_in_a_folder_of_any_name(script: Prompt, tmp_path: Path) -> None:
    folder = tmp_path / "my stüdy, it's [1]"
    (folder / "table").mkdir(parents=True)
    rows = "rows: [[dataset=digits, model=cnn13_digits]]\ncolumns: {one: []}\n"
    (folder / "table/own.yaml").write_text(f"title: Own\n{rows}")
    assert script("tables", "--config-dir", folder, "table=own", "--output", "out")[0] == 0
    assert (tmp_path / "out/tables/own.md").exists()
