"""The store: what is found is whole and what it says it is, and nothing is ever removed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from phaseavg.errors import UserError
from phaseavg.runs import store as module
from phaseavg.runs.files import checksum, link
from phaseavg.runs.store import Branch, Store

LOOKS = {"evaluation": {"every": 1}}
KEY, OTHER = "1" * 16, "2" * 16
CPU, GPU = "c" * 8, "d" * 8


def snapshot(folder: Path, content: bytes = b"weights") -> Path:
    """Return a file that is named by its checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"snapshot-0001-{checksum(content)}.pt"
    path.write_bytes(content)
    return path


def save(store: Store, key: str = KEY, value: float = 1.0, files: Any = (), **given: Any) -> Branch:
    description = {"name": f"run {key[0]}", "epoch": 2, "averages": {"a": "one"}, "looks": LOOKS}
    state = {"weights": torch.full((1000,), value)}
    return store.save(key, CPU, state, files, **{**description, **given})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def test_what_is_saved_is_found_by_who_needs_no_more_than_it_holds(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    branch = save(store, files=[snapshot(tmp_path / "run")])
    assert store.branches() == [branch]
    assert store.find(KEY, CPU, ["a"], LOOKS) == [branch]
    assert store.find(KEY, CPU, [], LOOKS) == [branch]
    assert store.find(KEY, CPU, ["a", "b"], LOOKS) == []
    assert store.find(KEY, CPU, [], {"evaluation": {"every": 2}}) == []
    assert store.find(KEY, GPU, [], LOOKS) == []
    assert store.find(OTHER, CPU, [], LOOKS) == []
    state = store.load(branch)
    assert state is not None
    assert torch.equal(state["weights"], torch.ones(1000))
    assert save(store, files=[snapshot(tmp_path / "run")]) == branch  # the same, once
    assert len(list(tmp_path.glob(f"store/{KEY}/*.pt"))) == 1
    assert not list(tmp_path.glob("store/**/.*.part"))


def test_one_that_holds_more_is_found_beside_one_that_holds_less(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, value=1.0)
    more = save(store, value=2.0, averages={"a": "one", "b": "two"})
    assert store.find(KEY, CPU, ["b"], LOOKS) == [more]


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
        flip(branch.path)
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
    assert capsys.readouterr().out.startswith(f"{named} is damaged, or of another run: run 1 is")
    assert store.branches() == []
    assert branch.path.with_name(f"{branch.path.name}.damaged").exists() == (damage != "gone")
    again = save(store, files=[snapshot(tmp_path / "run")])
    assert store.load(again) is not None  # its snapshot, too, is a whole one again


def test_a_state_of_another_run_is_found_out_though_it_is_intact(tmp_path: Path) -> None:
    """In another run's folder under its own name, or for another execution."""
    store = Store(tmp_path)
    branch, other = save(store, KEY), save(store, OTHER, 2.0)
    for path in (other.path, other.path.with_suffix(".json")):
        shutil.copy(path, branch.path.parent / path.name)
    branch.path.with_suffix(".json").unlink()
    (moved,) = store.branches(KEY)
    assert moved.path.name == other.path.name
    assert store.load(moved) is None
    renamed = other.path.with_name(other.path.name.replace(CPU, GPU))
    shutil.copy(other.path, renamed)
    shutil.copy(other.path.with_suffix(".json"), renamed.with_suffix(".json"))
    (gpu,) = store.branches(OTHER, GPU)
    assert store.load(gpu) is None
    assert store.load(other) is not None


def test_loading_executes_nothing(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    store = Store(tmp_path)
    path = tmp_path / KEY / "x"
    path.parent.mkdir()
    torch.save({"prefix": Bad()}, path)
    content = path.read_bytes()
    path = path.rename(path.with_name(f"{CPU}-{checksum(content)}.pt"))
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
    assert len(list(tmp_path.glob("*/*.pt"))) == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"share\.dir=.*/file/store: cannot be written"):
        save(Store(tmp_path / "file/store"))


def test_only_what_the_store_has_made_is_read_or_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of the user's own files, which a state is left in, keeps them all as they are."""
    own = {"mine-1.json": "{", "1-2/a-b.json": "[]", f"{KEY}/{CPU}-0000.json": "{"}
    own |= {f"{KEY}/{CPU}-{'0' * 16}.json": "{}", f"{KEY}/.mine.part": "", "snapshots/a.pt": ""}
    for name, text in own.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    store = Store(tmp_path)
    branch = save(store)
    store.write(store.trajectories / "a-b.json", {"keys": [KEY]})  # which describes no state
    assert store.branches() == [branch]
    flip(branch.path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert store.load(branch) is None
    assert f"{branch.path} is damaged" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["../mine.pt", "/etc/hostname", f"mine-{checksum(b'')}.pt"])
def test_a_state_that_refers_to_a_file_of_no_snapshot_touches_none(
    tmp_path: Path, name: str
) -> None:
    store = Store(tmp_path / "store")
    branch = save(store, files=[snapshot(tmp_path / "run")])
    (mine := store.folder / "mine.pt").touch()
    state = torch.load(branch.path)
    state["files"] = state["description"]["files"] = branch.files[:] = [name]
    torch.save(state, branch.path)
    forged = branch.path.rename(
        branch.path.with_name(f"{CPU}-{checksum(branch.path.read_bytes())}.pt")
    )
    assert store.load(replace(branch, path=forged)) is None
    assert mine.exists()
    assert not forged.exists()


def test_a_description_of_another_state_is_found_out(tmp_path: Path) -> None:
    """Else a run would go on with another one's average."""
    store = Store(tmp_path)
    branch = save(store)
    path = branch.path.with_suffix(".json")
    path.write_text(path.read_text().replace('"one"', '"two"'))
    (changed,) = store.branches()
    assert changed.averages == {"a": "two"}
    assert store.load(changed) is None


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
