"""The store: what is found is whole and what it says it is, and what goes is what nobody needs."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from phaseavg.errors import UserError
from phaseavg.runs import store as module
from phaseavg.runs.files import checksum, link
from phaseavg.runs.store import Branch, Store

LOOKS = {"evaluation": {"every": 1}}


def snapshot(folder: Path, content: bytes = b"weights") -> Path:
    """Return a file that is named by its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"snapshot-0001-{checksum(content)}.bin"
    path.write_bytes(content)
    return path


def save(
    store: Store, key: str = "k1", value: float = 1.0, files: Any = (), **given: Any
) -> Branch:
    description = {"name": f"run {key}", "epoch": 2, "averages": {"a": "one"}, "looks": LOOKS}
    state = {"weights": torch.full((1000,), value)}
    return store.save(key, "cpu", state, files, **{**description, **given})


def test_what_is_saved_is_found_by_who_needs_no_more_than_it_holds(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    branch = save(store, files=[snapshot(tmp_path / "run")])
    assert store.branches() == [branch]
    assert store.find("k1", "cpu", ["a"], LOOKS) == [branch]
    assert store.find("k1", "cpu", [], LOOKS) == [branch]
    assert store.find("k1", "cpu", ["a", "b"], LOOKS) == []
    assert store.find("k1", "cpu", [], {"evaluation": {"every": 2}}) == []
    assert store.find("k1", "gpu", [], LOOKS) == []
    assert store.find("k2", "cpu", [], LOOKS) == []
    state = store.load(branch)
    assert state is not None
    assert torch.equal(state["weights"], torch.ones(1000))
    assert save(store, files=[snapshot(tmp_path / "run")]) == branch  # the same, once
    assert len(list(tmp_path.glob("store/k1/*.pt"))) == 1
    assert not list(tmp_path.glob("store/**/.*.part"))


def test_one_that_holds_more_is_found_beside_one_that_holds_less(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, value=1.0)
    more = save(store, value=2.0, averages={"a": "one", "b": "two"})
    assert store.find("k1", "cpu", ["b"], LOOKS) == [more]


def test_snapshots_outlive_the_run_that_wrote_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    branch = save(store, files=[snapshot(tmp_path / "run")])
    shutil.rmtree(tmp_path / "run")
    assert store.load(branch) is not None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "snapshot", "no snapshot"])
def test_what_is_damaged_is_named_and_set_aside(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    file = snapshot(tmp_path / "run")
    branch = save(store, files=[file])
    kept = store.snapshots / file.name
    if damage == "flipped":
        content = bytearray(branch.path.read_bytes())
        content[1000] ^= 1
        branch.path.write_bytes(content)
    elif damage == "truncated":
        os.truncate(branch.path, 1000)
    elif damage == "gone":
        branch.path.unlink()
    else:
        kept.unlink()
        if damage == "snapshot":
            kept.write_bytes(b"weightS")
    assert store.load(branch) is None
    named = kept if "snapshot" in damage else branch.path
    assert capsys.readouterr().out.startswith(f"{named} is damaged, or of another run: run k1 is")
    assert store.branches() == []
    assert branch.path.with_name(f"{branch.path.name}.damaged").exists() == (damage != "gone")
    again = save(store, files=[snapshot(tmp_path / "run")])
    assert store.load(again) is not None  # its snapshot, too, is a whole one again


def test_a_state_of_another_run_is_found_out_though_it_is_intact(tmp_path: Path) -> None:
    """In another run's folder under its own name, or for another execution."""
    store = Store(tmp_path)
    branch, other = save(store, "k1"), save(store, "k2", 2.0)
    for path in (other.path, other.path.with_suffix(".json")):
        shutil.copy(path, branch.path.parent / path.name)
    branch.path.with_suffix(".json").unlink()
    (moved,) = store.branches("k1")
    assert moved.path.name == other.path.name
    assert store.load(moved) is None
    renamed = other.path.with_name(other.path.name.replace("cpu", "gpu"))
    shutil.copy(other.path, renamed)
    shutil.copy(other.path.with_suffix(".json"), renamed.with_suffix(".json"))
    (gpu,) = store.branches("k2", "gpu")
    assert store.load(gpu) is None
    assert store.load(other) is not None


def test_loading_executes_nothing(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    store = Store(tmp_path)
    path = tmp_path / "k1" / "x"
    path.parent.mkdir()
    torch.save({"prefix": Bad()}, path)
    content = path.read_bytes()
    path = path.rename(path.with_name(f"cpu-{checksum(content)}.pt"))
    branch = Branch(path, "bad", 1, {}, {}, [], len(content))
    assert store.load(branch) is None
    assert not (tmp_path / "executed").exists()


def test_a_write_that_is_cut_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    write = module.write_atomically

    def cut(path: Path, *rest: Any) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(module, "write_atomically", cut)
        with pytest.raises(KeyboardInterrupt):
            save(store)
    assert store.branches() == []
    assert len(list(tmp_path.glob("k1/*.pt"))) == 1
    store.clean()
    assert not list(tmp_path.glob("k1/*"))


def test_what_a_run_needs_stays_until_it_has_ended(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    file = snapshot(tmp_path / "run")
    needed, other = save(store, "k1", files=[file]), save(store, "k2", files=[file])
    alone = save(store, "k3", files=[snapshot(tmp_path / "run", b"other")])
    places = [tmp_path / "runs/r1", tmp_path / "records/r1"]
    store.need("k1", {"r1": places})
    store.need("k1", {"r2": [tmp_path / "runs/r2"]})
    store.need("k4", {"r2": [tmp_path / "runs/r2"]})  # whose state is not there yet
    assert store.needed_by("k1") == ["r1", "r2"]
    assert store.needed_by("k2") == []
    assert store.clean() == [other, alone]
    assert store.load(needed) is not None
    assert [path.name for path in store.snapshots.iterdir()] == [file.name]
    assert store.needed_by("k4") == ["r2"]
    for run in ("records/r1", "runs/r2"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "result.json").touch()
    assert store.needed_by("k1") == []
    assert store.clean() == [needed]
    assert {p.name for p in (tmp_path / "store").iterdir()} == {".lock", "snapshots"}
    assert store.clean() == []


def test_the_limit_is_kept_and_what_nobody_needs_goes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = save(Store(tmp_path / "measured")).size
    gb = 2.6 * size / 1e9  # two states and their descriptions
    store = Store(tmp_path / "store", gb)
    for key in ("k1", "k2"):
        save(store, key)
    store.need("k2", {"r": [tmp_path / "r"]})
    save(store, "k3")
    assert "1 states that no run needs any more made room" in capsys.readouterr().out
    assert [branch.key for branch in store.branches()] == ["k2", "k3"]
    store.need("k3", {"r": [tmp_path / "r"]})
    with pytest.raises(UserError, match=r"share\.limit_gb=\S+: \S+ GB more do not fit into "):
        save(store, "k4")
    assert [branch.key for branch in store.branches()] == ["k2", "k3"]
    assert store.used() <= gb * 1e9


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=disk.total // 50 + 1000))
    with pytest.raises(UserError, match=r"share\.limit_gb=null: .* has room for 1e-06 GB"):
        save(Store(tmp_path))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"share\.dir=.*/file/store: cannot be written"):
        save(Store(tmp_path / "file/store"))


def test_what_is_no_description_is_named_and_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    save(store)
    (tmp_path / "k1/cpu-0000.json").write_text("{")
    (tmp_path / "k1/cpu-0001.json").write_text(json.dumps({"name": "half"}))
    store.write(store.trajectories / "a-b.json", {"keys": ["k1"]})  # which is none, nor damaged
    assert len(store.branches()) == 1
    assert capsys.readouterr().out.count("is damaged: set aside") == 2
    assert len(store.branches()) == 1
    assert capsys.readouterr().out == ""
    assert len(list(tmp_path.glob("k1/*.json.damaged"))) == 2


def test_a_description_of_another_state_is_found_out(tmp_path: Path) -> None:
    """Else a run would go on with another one's average."""
    store = Store(tmp_path)
    branch = save(store)
    path = branch.path.with_suffix(".json")
    path.write_text(path.read_text().replace('"one"', '"two"'))
    (changed,) = store.branches()
    assert changed.averages == {"a": "two"}
    assert store.load(changed) is None


def test_who_uses_a_state_does_so_before_anything_can_be_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    branch = save(store)
    used = []

    def use(state: dict[str, Any]) -> None:
        with (tmp_path / ".lock").open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        used.append(state)

    assert store.load(branch, use) is used[0]


def test_a_link_is_a_copy_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = snapshot(tmp_path / "a")

    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    link(source, tmp_path / "b" / source.name, "x")
    assert (tmp_path / "b" / source.name).samefile(source)
    link(source, tmp_path / "b" / source.name, "x")  # there already
    monkeypatch.setattr(os, "link", refuse)
    link(source, tmp_path / "c" / source.name, "x")
    assert not (tmp_path / "c" / source.name).samefile(source)
    assert (tmp_path / "c" / source.name).read_bytes() == b"weights"
