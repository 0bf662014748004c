"""Files of options (conf/, --config-dir): what is wrong in one is said with its file and line."""

from itertools import islice
from pathlib import Path

import yaml
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from phaseavg.errors import UserError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _require_mapping(content: bytes) -> None:
    """Check that YAML is a mapping, or empty, and has no aliases.

    A few lines of aliases of aliases stand for more values than a machine has memory.
    """
    events = yaml.parse(content, Loader=LOADER)
    # The first two are the beginnings of the stream and of its document.
    for number, event in enumerate(islice(events, 2, None)):
        if number == 0 and not isinstance(event, yaml.MappingStartEvent | yaml.StreamEndEvent):
            wrong = "must be a mapping of keys to values"
        elif isinstance(event, yaml.AliasEvent):
            wrong = f"*{event.anchor}: aliases are not read; write the value out, or as ${{key}}"
        else:
            continue
        raise yaml.MarkedYAMLError(problem=wrong, problem_mark=event.start_mark)


def _require_defaults(config: Container) -> None:
    """Check that the defaults of a file, if it has any, are names and groups with names."""
    defaults = OmegaConf.to_container(config).get("defaults", [])
    entries = defaults if isinstance(defaults, list) else [None]
    for entry in entries:
        names = [*entry.items()] if isinstance(entry, dict) and len(entry) == 1 else [("", entry)]
        for group, name in names:
            if not isinstance(name, str | list) and not (group and name is None):
                raise ValueError(f"defaults={defaults}: must be a list of names and group: name")


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's own, whose name it has to have, but for how it says what is wrong in a file."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file.

        Raises:
            UserError: if it cannot be read, or is none of options.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.is_file():
            return super().load_config(config_path)
        line, column, content = 0, 0, b""
        try:
            content = path.read_bytes()
            _require_mapping(content)
            found = super().load_config(config_path)
            _require_defaults(found.config)
            return found
        except yaml.MarkedYAMLError as error:
            reason = error.problem or error.context
            if mark := error.problem_mark or error.context_mark:
                line, column = mark.line + 1, mark.column + 1
        except yaml.reader.ReaderError as error:
            reason = f"is not UTF-8, or has a character that YAML has not: {error.reason}"
            line = content[: error.position].count(b"\n") + 1
        except RecursionError:
            reason = "is nested too deeply"
        except OSError as error:
            reason = error.strerror
        except (ValueError, OmegaConfBaseException) as error:  # of a header; of an interpolation
            reason = str(error)
        where = f", line {line}" * bool(line) + f", column {column}" * bool(column)
        raise UserError(f"{path}{where}: {' '.join(str(reason).split())}")


SourcesRegistry.instance().types["file"] = FileConfigSource
