"""Compose configs with Hydra, and cache those of tables on disk.

Hydra takes a tenth of a second to compose one config, and the paper's tables have 289. The cache
holds configs before interpolation, by the content of the config folders and the overrides.
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
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from phaseavg.cli import CONFIG_ERRORS, explain
from phaseavg.errors import UserError
from phaseavg.runs.files import write_atomically

Compose = Callable[[Sequence[str]], DictConfig]
"""From overrides to a run's composed config."""

KEPT = 20
"""Cache files, one for each state of the config folders; older ones are removed."""


def composer(context: HydraContext, master: DictConfig) -> Compose:
    """Return a function that composes a run's config as launchers do."""

    def composed(overrides: Sequence[str]) -> DictConfig:
        config = context.config_loader.load_sweep_config(master, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config

    return composed


def config_folders(context: HydraContext, master: DictConfig) -> list[Path] | None:
    """Return the folders that configs are composed from; None if some are in a Python package."""
    path = context.config_loader.get_search_path().get_path()
    own = [entry.path for entry in path if entry.provider not in ("hydra", "schema")]
    own = [entry for entry in own if not entry.startswith("pkg://hydra_plugins")]
    places = [p.removeprefix("file://") for p in (*own, *(master.hydra.searchpath or ()))]
    return None if any("://" in place for place in places) else [*map(Path, places)]


@contextlib.contextmanager
def composing(conf: Path, more: Path | None = None) -> Iterator[tuple[list[str], Compose]]:
    """Give the names of all tables, and a function that composes a config outside a Hydra job.

    Args:
        conf: the folder of the configs.
        more: another one, as --config-dir of train.py.

    Raises:
        UserError: if a config cannot be composed.
    """
    GlobalHydra.instance().clear()
    folders = [conf, more] if more else [conf]
    options = sorted(path.stem for f in folders for path in (f / "table").glob("*.yaml"))
    search = [f"hydra.searchpath=[file://{more.resolve()}]"] if more else []

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
    """Give a function that composes configs, and takes from disk those composed before.

    Args:
        composed: composes a config.
        folders: of all files that it reads; None: nothing is cached.
        name: of the primary config, as --config-name of train.py.
    """
    state = None if folders is None else _state_of(folders, name)
    if state is None:
        yield composed
        return
    path, known = cache_folder() / f"{state}.json", {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # missing or damaged
        known = dict(json.loads(path.read_bytes()))
    before = len(known)

    def from_cache(overrides: Sequence[str]) -> DictConfig:
        key = json.dumps(list(overrides))
        if key not in known:
            config = composed(overrides)
            values = OmegaConf.to_container(config)
            if json.loads(json.dumps(values)) != values:  # JSON has no keys that are numbers
                return config
            known[key] = values
        return OmegaConf.create(known[key])

    try:
        yield from_cache
    finally:
        if len(known) > before:
            _write(path, known)


def cache_folder() -> Path:
    """Return the user's folder for composed configs; it may be removed at any time."""
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


def _write(path: Path, known: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, UserError):  # a full disk costs seconds, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known).encode())
        by_age = sorted(path.parent.glob("*.json"), key=lambda file: -file.stat().st_mtime)
        for old in by_age[KEPT:]:
            old.unlink(missing_ok=True)
