"""The cache of composed configs, keyed by the content of the config folders."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import REPOSITORY
from omegaconf import DictConfig, OmegaConf

from phaseavg.config import check
from phaseavg.sweep.composing import MAX_CACHE_FILES, cache_folder, cached, composing


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the config folder; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    return tmp_path / "conf"


def composed(conf: Path, overrides: Sequence[str], name: str = "config") -> tuple[DictConfig, int]:
    """Return a config from the cache, and the number of times that Hydra composed it."""
    calls = []
    with composing(conf) as (_, compose):

        def counting(overrides: Sequence[str]) -> DictConfig:
            calls.append(overrides)
            return compose(overrides)

        with cached(counting, [conf], name) as from_cache:
            return from_cache(overrides), len(calls)


def test_a_config_is_composed_once_until_a_file_changes(conf: Path) -> None:
    first, calls = composed(conf, ["model=cnn13"])
    assert calls == 1
    again, calls = composed(conf, ["model=cnn13"])
    assert calls == 0
    assert OmegaConf.to_container(again) == OmegaConf.to_container(first)
    _, calls = composed(conf, ["model=cnn13"], "another_config")
    assert calls == 1
    path = conf / "schedule" / "80-40-40.yaml"
    path.write_text(path.read_text().replace("80", "81", 1))
    changed, calls = composed(conf, ["model=cnn13"])
    assert calls == 1
    assert check(changed).schedule["epochs"] != check(first).schedule["epochs"]


def test_a_config_from_the_cache_is_a_copy(conf: Path) -> None:
    composed(conf, ["model=cnn13"])
    with composing(conf) as (_, compose), cached(compose, [conf]) as from_cache:
        from_cache(["model=cnn13"]).batch_size = 1
        assert from_cache(["model=cnn13"]).batch_size != 1


def test_a_damaged_cache_is_composed_again(conf: Path) -> None:
    composed(conf, ["model=cnn13"])
    (path,) = cache_folder().glob("*.json")
    path.write_bytes(b'{"a": ')
    _, calls = composed(conf, ["model=cnn13"])
    assert calls == 1
    assert len(json.loads(path.read_bytes())) == 1


def test_options_that_depend_on_the_environment_are_not_cached(conf: Path) -> None:
    (conf / "model" / "mine.yaml").write_text("defaults:\n  - /optimizer: ${oc.env:NAME}\n")
    for _ in range(2):
        _, calls = composed(conf, ["model=cnn13"])
        assert calls == 1
    assert not cache_folder().exists()


def test_configs_that_json_would_change_are_not_cached(conf: Path) -> None:
    for _ in range(2):
        config, calls = composed(conf, ["+model.sizes={1:2}"])
        assert (config.model.sizes, calls) == ({1: 2}, 1)


def test_an_unwritable_cache_is_ignored(conf: Path) -> None:
    cache_folder().parent.mkdir(parents=True)
    cache_folder().write_text("a file where the folder should be")
    _, calls = composed(conf, ["model=cnn13"])
    assert calls == 1


def test_old_cache_files_are_removed(conf: Path) -> None:
    cache_folder().mkdir(parents=True)
    for number in range(MAX_CACHE_FILES + 3):
        (cache_folder() / f"{number}.json").write_text("{}")
    composed(conf, ["model=cnn13"])
    assert len(list(cache_folder().glob("*.json"))) == MAX_CACHE_FILES
