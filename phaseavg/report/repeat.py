"""The command that repeats a run, from its config."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phaseavg.cli import as_option
from phaseavg.config import check
from phaseavg.runs.identity import run_id as id_of
from phaseavg.sweep.cells import Run, key_of, parsed
from phaseavg.targets import option_targets, targets

GROUPS = ("dataset", "model", "optimizer", "schedule", "averaging")

NAMED = ("dataset", "model")
"""Of these the option is said also where it is the usual one."""

PROFILE = "profile"
"""The group of whole ways of execution: what it sets lies in `execution`."""

FOLDERS = ("data_dir", "runs_dir", "records_dir")
"""Where things lie is no part of what a run is."""

UNUSUAL = (ValueError, LookupError, TypeError, AttributeError)
"""What the config of other code comes to: a part that is none, or lacks what is looked for."""

PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*")
"""Texts that Hydra takes for themselves."""


def leaves(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by the names that overrides have for them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= leaves(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value
    return found


def literal(value: Any) -> str:
    """Return a value as an override has it."""
    if isinstance(value, str):
        quoted = QuotedString(text=value, quote=Quote.single).with_quotes()
        return value if PLAIN.fullmatch(value) else quoted
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    return json.dumps(value)


def _differing(own: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """Return the leaves in which two configs differ; what another leaves open is no difference."""
    left_open = {key for key, value in other.items() if value == "auto" and key in own}
    keys = (own.keys() | other.keys()) - left_open
    return {key for key in keys if key not in own or key not in other or own[key] != other[key]}


def changes(config: Mapping[str, Any], composed: Mapping[str, Any]) -> list[str]:
    """Return the overrides that make a composed config the one of a run, the seed apart."""
    own, other = leaves(config), leaves(composed)
    overrides = []
    for key in sorted(_differing(own, other) - {"seed"}):
        follows = key.endswith(".weight_decay") and own.get(key) == own.get("weight_decay")
        if follows and key in other:
            continue  # of the optimizers: they refer to the run's
        if key in own:
            overrides.append(f"{'' if key in other else '+'}{key}={literal(own[key])}")
        elif key.partition(".")[0] in GROUPS:  # elsewhere: a setting that is newer than the run
            overrides.append(f"~{key}")
    return overrides


def typed(overrides: Sequence[str], conf: Path) -> list[str]:
    """Return overrides as they are typed, without those of folders; see `as_option`."""
    found = []
    for override in overrides:
        if key_of(parsed([override])[0]) not in FOLDERS:
            plain = re.sub(r"='(\d+)'$", r"=\1", override)
            found.append(plain if as_option(plain, conf) == override else override)
    return found


def command(overrides: Sequence[str], ended: bool, conf: Path) -> str:
    """Return the command line of a run.

    Args:
        overrides: of the run; folders in them are left out.
        ended: whether there is an outcome, which would be found instead of the run being repeated.
        conf: the folder of the configs.
    """
    return shlex.join(["python", "train.py", *typed(overrides, conf), *["force=true"] * ended])


class Repeats:
    """Knows how runs are repeated.

    A recorded config may be from anywhere: what it names is imported only if an option does so.

    Args:
        conf: the folder of the configs.
    """

    def __init__(self, conf: Path) -> None:
        self._conf = conf
        self._composed: dict[tuple[str, ...], dict[str, Any]] = {}
        self._targets = option_targets(conf)

    def knows(self, config: Any) -> bool:
        """Return whether all that a config names to be imported is of the options."""
        return self._targets.issuperset(targets(config))

    def _load(self, overrides: Sequence[str]) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(self._conf.resolve()), version_base="1.3"):
            return compose("config", list(overrides))

    def _compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the record's config of overrides, the seed apart.

        Raises:
            UserError: or one of Hydra's, if there is none.
        """
        key = tuple(overrides)
        if key not in self._composed:
            record = check(self._load(overrides)).record()
            self._composed[key] = json.loads(json.dumps(record))
        return self._composed[key]

    def _options(self, group: str, target: str) -> dict[str, dict[str, Any]]:
        """Return what the options of a group that have a target make of their part of a config."""
        files = sorted((self._conf / group).glob("*.yaml"))
        return {
            path.stem: self._part(
                group, self._compose([as_option(f"{group}={path.stem}", self._conf)])
            )
            for path in files
            if target in path.read_text()
        }

    @staticmethod
    def _part(group: str, config: Mapping[str, Any]) -> dict[str, Any]:
        return leaves(config.get("execution" if group == PROFILE else group) or {})

    def _closest(self, group: str, config: Mapping[str, Any]) -> str | None:
        """Return the option nearest to a part of a config; None where none has to be named."""
        own, usual = self._part(group, config), self._part(group, self._compose([]))

        def distance(part: Mapping[str, Any]) -> tuple[bool, int]:
            differing = _differing(own, part)
            return any(key.endswith("_target_") for key in differing), len(differing)

        options = self._options(group, str(own.get("_target_", "")))
        best = min(options, key=lambda name: distance(options[name]), default=None)
        if best and group not in NAMED and distance(options[best]) >= distance(usual):
            return None
        return best

    def overrides_of(self, config: Mapping[str, Any], run_id: str) -> list[str] | None:
        """Return overrides that make a run, tried by composing; None if there are none.

        Args:
            config: as recorded.
            run_id: that has to come out.
        """
        try:
            usual = self._compose([])
            if not self.knows(config) or config.keys() - usual.keys() or "${" in json.dumps(config):
                return None
            chosen = {group: self._closest(group, config) for group in (*GROUPS, PROFILE)}
            base = [
                as_option(f"{group}={name}", self._conf) for group, name in chosen.items() if name
            ]
            seed = f"seed={literal(config['seed'])}"
            overrides = [*base, *changes(config, self._compose(base)), seed]
            composed = self._load(overrides)
            if not self.knows(OmegaConf.to_container(composed, resolve=True)):
                return None
            return overrides if check(composed).run_id == run_id else None
        except (HydraException, OmegaConfBaseException, *UNUSUAL):
            return None  # such as the config of other code


def of_a_table(run: Run, config: Mapping[str, Any]) -> list[str]:
    """Return the overrides of a table's run, and of what it was carried out with beside them.

    Args:
        run: of the table.
        config: as recorded; it counts where it is the run's.
    """
    *own, seed = run.overrides
    composed = json.loads(json.dumps(run.settings.record()))
    recorded = _recorded_id(config, run) == run.settings.run_id
    return [*own, *(changes(config, composed) if recorded else []), seed]


def _recorded_id(config: Mapping[str, Any], run: Run) -> str | None:
    """Return the run id that a recorded config gives; None if it is not whole."""
    try:
        return id_of({key: config[key] for key in run.settings.recipe()})
    except UNUSUAL:
        return None
