"""Compose configs with Hydra, and cache the configs of tables on disk.

Hydra composes a config in 0.1 s, and the paper's tables have 289 configs. The cache stores configs
before interpolation; its keys are the overrides and a hash of the config folders.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import omegaconf
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from phaseavg.cli import CONFIG_ERRORS, explain
from phaseavg.errors import UserError
from phaseavg.runs.files import write_atomically

Compose = Callable[[Sequence[str]], DictConfig]
"""Maps overrides to the composed config of a run."""

MAX_CACHE_FILES = 20
"""The maximum number of cache files, one per state of the config folders."""


def composer(context: HydraContext, master: DictConfig) -> Compose:
    """Return a function that composes a run's config like Hydra's launchers."""

    def composed(overrides: Sequence[str]) -> DictConfig:
        config = context.config_loader.load_sweep_config(master, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config

    return composed


def config_folders(context: HydraContext, master: DictConfig) -> list[Path] | None:
    """Return the config folders; None if a config comes from a Python package."""
    search_path = context.config_loader.get_search_path().get_path()
    entries = [entry.path for entry in search_path if entry.provider not in ("hydra", "schema")]
    entries = [entry for entry in entries if not entry.startswith("pkg://hydra_plugins")]
    paths = [p.removeprefix("file://") for p in (*entries, *(master.hydra.searchpath or ()))]
    return None if any("://" in path for path in paths) else [*map(Path, paths)]


@contextlib.contextmanager
def composing(conf: Path, more: Path | None = None) -> Iterator[tuple[list[str], Compose]]:
    """Yield the names of all tables, and a function that composes a config outside a Hydra job.

    Args:
        conf: the config folder.
        more: a second config folder, like --config-dir of train.py.

    Raises:
        UserError: if a config cannot be composed.
    """
    if more and not more.is_dir():
        raise UserError(f"--config-dir={more}: there is no such folder")
    GlobalHydra.instance().clear()
    folders = [conf, more] if more else [conf]
    options = sorted(path.stem for f in folders for path in (f / "table").glob("*.yaml"))
    quoted = QuotedString(f"file://{more.resolve()}", Quote.single).with_quotes() if more else ""
    search = [f"hydra.searchpath=[{quoted}]"] if more else []

    def composed(overrides: Sequence[str]) -> DictConfig:
        return compose("config", [*search, *overrides])

    try:
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            yield options, composed
    except CONFIG_ERRORS as error:
        raise UserError(explain(error)) from error


@contextlib.contextmanager
def cached(
    composed: Compose, folders: Iterable[Path] | None, name: str = "config"
) -> Iterator[Compose]:
    """Yield a function that composes configs, or loads them from the cache.

    Args:
        composed: composes a config.
        folders: all config folders; None disables the cache.
        name: the primary config, like --config-name of train.py.
    """
    state = None if folders is None else _state_of(folders, name)
    if state is None:
        yield composed
        return
    path, cache = cache_folder() / f"{state}.json", {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing or damaged
        cache = dict(json.loads(path.read_bytes()))
    before = len(cache)

    def from_cache(overrides: Sequence[str]) -> DictConfig:
        key = json.dumps(list(overrides))
        if key not in cache:
            config = composed(overrides)
            values = OmegaConf.to_container(config)
            if json.loads(json.dumps(values)) != values:  # JSON keys cannot be numbers
                return config
            cache[key] = values
        return OmegaConf.create(cache[key])

    try:
        yield from_cache
    finally:
        if len(cache) > before:
            _write(path, cache)


def cache_folder() -> Path:
    """Return the cache folder for composed configs, which may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "phaseavg", "configs")


def _state_of(folders: Iterable[Path], name: str) -> str | None:
    """Return a hash of all that a config depends on; None if an option follows the environment."""
    digest = hashlib.sha256(f"{hydra.__version__} {omegaconf.__version__} {name}".encode())
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            content = path.read_bytes()
            if re.search(rb"^\s*- .*oc\.env", content, re.MULTILINE):  # in a defaults list
                return None
            digest.update(f"\0{path.relative_to(folder)}\0".encode() + content)
        digest.update(b"\1")
    return digest.hexdigest()[:16]


def _write(path: Path, cache: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, UserError):  # without a cache, configs are composed again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(cache).encode())
        by_age = sorted(path.parent.glob("*.json"), key=lambda file: -file.stat().st_mtime)
        for old in by_age[MAX_CACHE_FILES:]:
            old.unlink(missing_ok=True)
