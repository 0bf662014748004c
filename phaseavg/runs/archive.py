"""Records that are kept: imported from anywhere, under the run ids of today.

A kept record is `<records>/<run_id>/` with config.yaml, result.json and metrics.jsonl.xz.
"""

import inspect
import json
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from phaseavg.config import check_record
from phaseavg.errors import UserError, told
from phaseavg.runs.files import (
    LIMIT,
    MEGABYTE,
    alone_in,
    capped,
    dump_yaml,
    load_json,
    load_yaml,
    read_file,
    unpacked,
    write_atomically,
)
from phaseavg.runs.identity import run_id
from phaseavg.runs.record import checked_config, checked_lines, checked_result, require_one_run
from phaseavg.targets import is_part, located, signature

NAMES = ("config.yaml", "result.json", "metrics.jsonl", "metrics.jsonl.xz")
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)

TOTAL_LIMIT = 32 * LIMIT
"""The most bytes that all records of a folder or archive may have together."""


@dataclass
class Record:
    """One ended run.

    Attributes:
        source: where it comes from, as a user would look for it.
        run_id: today's.
        config: as of today's schema.
        result: the outcome.
        metrics: the lines of metrics.jsonl.
    """

    source: str
    run_id: str
    config: dict[str, Any]
    result: dict[str, Any]
    metrics: bytes

    def differs_from(self, other: "Record") -> list[str]:
        """Return the files in which two records of a run differ, whatever they were called."""
        names = ("run_id", "former_run_ids")
        own, others = (
            {key: value for key, value in record.result.items() if key not in names}
            for record in (self, other)
        )
        same = {
            "config": self.config == other.config,
            "metrics": self.metrics == other.metrics,
            "result": own == others,
        }
        return [name for name, equal in same.items() if not equal]

    def write(self, records: Path) -> None:
        """Write it to its folder; half of it is never there under its name.

        Only for who is `alone_in` the folder `records`.
        """
        temporary = records / f".{self.run_id}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        result = json.dumps(self.result, ensure_ascii=False, indent=1) + "\n"
        for name, content in {
            "config.yaml": dump_yaml(self.config),
            "metrics.jsonl.xz": lzma.compress(self.metrics),
            "result.json": result.encode(),
        }.items():
            write_atomically(temporary / name, content, f"--records={records}")
        temporary.rename(records / self.run_id)


Files = dict[str, bytes]
"""The content of a folder's files, as far as their names are `NAMES`."""


def _checked(name: str, source: Path) -> PurePosixPath:
    """Return a path in an archive.

    Raises:
        UserError: if it leads out of it.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise UserError(f"FROM={source}: {name} leads out of the archive; nothing was imported")
    return path


def _in_tar(source: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    with tarfile.open(source) as archive:
        for member in archive:
            path = _checked(member.name, source)
            if member.issym() or member.islnk():
                _checked(member.linkname, source)
            if member.isfile() and path.name in NAMES:
                yield path, capped(archive.extractfile(member), member.name)


def _in_zip(source: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            path = _checked(member.filename, source)
            if path.name in NAMES and not member.is_dir():
                with archive.open(member) as file:
                    yield path, capped(file, member.filename)


def _in_folder(source: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    root = source.resolve()
    for name in NAMES:
        for path in sorted(source.rglob(name)):
            if not path.resolve().is_relative_to(root):
                raise UserError(f"FROM={source}: {path} leads out of it; nothing was imported")
            if not any(part.startswith(".") for part in path.relative_to(source).parts):
                yield PurePosixPath(path.relative_to(source).as_posix()), read_file(path)


def folders_in(source: Path) -> dict[str, Files]:
    """Return what looks like a run in a folder or archive, by its path there.

    Raises:
        UserError: if it is not there, or neither, or holds paths that lead out of it.
    """
    if source.is_dir():
        found = _in_folder(source)
    elif not source.is_file():
        raise UserError(f"FROM={source}: there is no such file or folder")
    elif tarfile.is_tarfile(source):
        found = _in_tar(source)
    elif zipfile.is_zipfile(source):
        found = _in_zip(source)
    else:
        raise UserError(f"FROM={source}: is neither a folder nor a tar or zip archive")
    folders: dict[str, Files] = {}
    total = 0
    try:
        for path, content in found:
            total += len(content)
            if total > TOTAL_LIMIT:
                raise ValueError(f"its records have more than {TOTAL_LIMIT // MEGABYTE} MB")
            folders.setdefault(str(path.parent), {})[path.name] = content
    except UserError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, *DAMAGED) as error:
        # RuntimeError: encrypted
        raise UserError(f"FROM={source}: is damaged ({error})") from error
    return folders


def common_keys(conf: Path) -> dict[str, set[str]]:
    """Return by target the arguments that every option with this target sets.

    Args:
        conf: the folder of the configs.
    """
    keys: dict[str, set[str]] = {}

    def look(node: Any) -> None:
        if not isinstance(node, Mapping):
            return
        if is_part(node):
            own = node.keys() - {"_target_", "defaults"}
            keys[node["_target_"]] = keys.get(node["_target_"], own) & own
        for value in node.values():
            look(value)

    for path in conf.rglob("*.yaml"):
        look(load_yaml(read_file(path)))
    return keys


def completed(part: Any, keys: Mapping[str, set[str]], where: str = "") -> Any:
    """Return a part of a config with the arguments that its options have been given since.

    Each gets its constructor's default, which is what the part did before it had the argument; a
    change of that is what the version of the numerics is for.

    Args:
        part: of a record's config.
        keys: from `common_keys`.
        where: its name.

    Raises:
        UserError: if a new argument has no default.
    """
    if not isinstance(part, Mapping):
        return part
    done = {key: completed(value, keys, f"{where}.{key}") for key, value in part.items()}
    if not is_part(part):
        return done
    target = part["_target_"]
    for key in sorted(keys.get(target, set()) - done.keys()):
        parameter = signature(located(target)).parameters.get(key)
        if parameter is None or parameter.default is inspect.Parameter.empty:
            raise UserError(f"{where}.{key}: is missing, and {target} has no default for it")
        done[key] = parameter.default
    return done


def read_record(
    source: str, files: Files, keys: Mapping[str, set[str]], allow: Iterable[str] = ()
) -> Record | None:
    """Return the record in a folder, under the run id of today; None of a run that has not ended.

    Args:
        source: where the folder is.
        files: from `folders_in`.
        keys: from `common_keys`.
        allow: modules that its config may name beside the project's options.

    Raises:
        UserError: if it is damaged, or its config is none of today's.
    """
    if "result.json" not in files:
        return None
    try:
        result = checked_result(load_json(files["result.json"]))
        config = checked_config(files["config.yaml"])
        packed = files.get("metrics.jsonl.xz")
        metrics = files["metrics.jsonl"] if packed is None else unpacked(packed)
        require_one_run(result, config, checked_lines(metrics))
    except (ValueError, LookupError) as error:
        raise UserError(f"{source}: a damaged record ({told(error)}); move it away") from error
    version, former = result["numerics_version"], result["run_id"]
    try:
        config = {key: completed(value, keys, key) for key, value in config.items()}
        settings = check_record(config, {*keys, *allow})
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    identity = run_id(settings.recipe(), version)
    if identity != former:
        formers = [*result.get("former_run_ids", []), former]
        result = result | {"run_id": identity, "former_run_ids": formers}
    return Record(source, identity, settings.record(), result, metrics)


@dataclass
class Imported:
    """What an import has done: counts of records.

    Attributes:
        new: written.
        known: there already, the same.
        renamed: kept ones whose run id has changed.
        unended: of runs that have not ended, left out.
    """

    new: int = 0
    known: int = 0
    renamed: int = 0
    unended: int = 0


def import_records(
    source: Path | None, records: Path, conf: Path, allow: Iterable[str] = ()
) -> Imported:
    """Bring the ended runs of a folder or archive to `records`, and all there to today's run ids.

    Nothing is written unless all of it can be. Processes that import at once take turns.

    Args:
        source: folder or archive, if anything is to be imported.
        records: where they are kept.
        conf: the folder of the configs.
        allow: modules that records may name beside the project's own.

    Raises:
        UserError: if a record is damaged, or two of the same run say different things.
    """
    keys, done = common_keys(conf), Imported()
    found: dict[str, Record] = {}
    for name, files in (folders_in(source) if source else {}).items():
        record = read_record(f"{source}/{name}", files, keys, allow)
        if record is None:
            done.unended += 1
        elif not _add(record, found):
            done.known += 1
    if not found and not records.is_dir():
        return done
    try:
        records.mkdir(parents=True, exist_ok=True)
        with alone_in(records):
            _keep(found.values(), records, keys, allow, done)
    except OSError as error:
        raise UserError(f"--records={records}: {error}; the same command goes on") from error
    return done


def _keep(
    found: Iterable[Record],
    records: Path,
    keys: Mapping[str, set[str]],
    allow: Iterable[str],
    done: Imported,
) -> None:
    """Write records to the folder of those that are kept, and rename those whose run id is old.

    Args:
        found: to be written unless they are there.
        records: held by this process alone.
        keys: from `common_keys`.
        allow: modules that records may name.
        done: counts what is done.
    """
    before: dict[str, list[Path]] = {}  # by today's run id; two if a renaming was cut off
    kept: dict[str, Record] = {}
    for name, files in folders_in(records).items():
        if record := read_record(f"{records}/{name}", files, keys, allow):
            _add(record, kept)
            before.setdefault(record.run_id, []).append(records / name)
    for record in found:
        if _add(record, kept):
            done.new += 1
        else:
            done.known += 1
    for name in kept:
        if (records / name).exists() and records / name not in before.get(name, []):
            raise UserError(f"{records / name}: is no record and in the way; move it away")
    for name, record in kept.items():
        folders = before.get(name, [])
        if records / name not in folders:
            record.write(records)
        for old in folders:
            if old.name != name:
                shutil.rmtree(old)
                done.renamed += 1


def _add(record: Record, found: dict[str, Record]) -> bool:
    """Add a record; return whether it was not there yet.

    Raises:
        UserError: if there is another one of the same run.
    """
    other = found.setdefault(record.run_id, record)
    if other is record:
        return True
    if files := record.differs_from(other):
        raise UserError(
            f"{record.source} and {other.source} are both {record.run_id} and differ in "
            f"{', '.join(files)}; move one of them away; nothing was imported"
        )
    return False
