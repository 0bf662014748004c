"""Records from anywhere are read as plain data, or refused."""

import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import TINY
from made_records import keep

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.report.records import read_row
from phaseavg.runs.files import dump_yaml, load_json, load_yaml, read_file, unpacked
from phaseavg.runs.record import read_config, read_lines

BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(n + 1)}: &{chr(n + 1)} [*{chr(n)}, *{chr(n)}]\n" for n in range(97, 121)
)
HARMFUL = {
    "aliases": (load_yaml, BOMB, "alias"),
    "nested YAML": (load_yaml, "[" * 100 + "]" * 100, "nested"),
    "objects": (load_yaml, "!!python/object/apply:os.getcwd []", "plain data"),
    "long YAML": (load_yaml, "a" * 2_000_000, "more than 1 MB"),
    "nested JSON": (load_json, "[" * 100_000, "nested"),
    "packed zeros": (unpacked, lzma.compress(bytes(65 * 2**20), preset=0), "more than 64 MB"),
    "half of xz": (unpacked, lzma.compress(b"a" * 1000)[:-20], "cut off"),
    "no xz": (unpacked, b"a", "cut off"),
}


@pytest.mark.parametrize(("read", "content", "said"), HARMFUL.values(), ids=HARMFUL)
def test_what_would_exhaust_the_reader_is_refused(
    read: Callable[..., object], content: str | bytes, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        read(content)


def test_values_are_written_without_aliases() -> None:
    shared = [1, 2]
    values = {"b": shared, "a": {"c": shared}}
    assert load_yaml(dump_yaml(values)) == values


def test_only_regular_files_of_a_sensible_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="no regular file"):
            read_file(path)
    (tmp_path / "file").write_bytes(b"abc")
    assert read_file(tmp_path / "file", limit=3) == b"abc"
    with pytest.raises(ValueError, match="file has more than"):
        read_file(tmp_path / "file", limit=2)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "result.json"])
def test_a_pipe_in_a_record_is_named(compose_settings: Callable[..., Settings], name: str) -> None:
    folder = keep(compose_settings(*TINY), 5.0)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises((UserError, OSError), match="no regular file"):
        read_lines(folder) if name == "metrics.jsonl" else read_row(folder)


def test_a_recorded_value_is_never_interpolated(
    compose_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1234")
    folder = keep(compose_settings(*TINY), 5.0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["execution"]["device"] = "${oc.env:SECRET}"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"execution\.device=\$\{oc\.env:SECRET\}: "):
        read_config(folder)


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_files_of_two_runs_are_no_record(
    compose_settings: Callable[..., Settings], name: str
) -> None:
    first, second = (keep(compose_settings(*TINY, f"seed={seed}"), 5.0) for seed in (0, 1))
    (first / name).write_bytes((second / name).read_bytes())
    with pytest.raises(UserError, match=f"^{first}: a damaged record .*config.yaml is that of"):
        read_row(first)
    if name == "result.json":
        assert json.loads((first / name).read_text())["run_id"] == second.name
