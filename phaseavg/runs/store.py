"""Where shared trajectories leave the states at which runs branch off from them.

<key of the recipe's part>/<key of the execution>-<checksum>.pt     a state, and
<key of the recipe's part>/<key of the execution>-<checksum>.json   what it holds; written last
<key of the recipe's part>/needed_by.json                           runs that go on from there
snapshots/*.bin         weights of single epochs that states refer to; written once, never changed
trajectories/           what each leaves where, and how far those in training are

Every file is whole or not there, and what is read is what its name has the checksum of.
"""

import contextlib
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phaseavg.averaging.snapshots import checksum_matches
from phaseavg.errors import UserError
from phaseavg.runs.files import checksum, link, read_file, read_json, set_aside, write_atomically
from phaseavg.runs.folder import read_state

GIGABYTE = 10**9

FREE_SHARE = 0.02
"""Of a disk, what is left free for others."""


@dataclass(frozen=True)
class Branch:
    """A state at which runs branch off, as its description has it.

    Attributes:
        path: of the state.
        name: readable: data set, network, optimizer, seed, epoch.
        epoch: whose last update was the last one.
        averages: under which name the state has an average, by the average's identity.
        looks: what was looked at in the epochs before.
        files: names of the snapshots that the state refers to.
        size: bytes, those of the snapshots, which other states may refer to as well, apart.
    """

    path: Path
    name: str
    epoch: int
    averages: dict[str, str]
    looks: dict[str, Any]
    files: list[str]
    size: int

    @property
    def key(self) -> str:
        """The key of the recipe's part."""
        return self.path.parent.name

    def description(self) -> dict[str, Any]:
        """Return what the state itself says of it, too."""
        names = ("name", "epoch", "averages", "looks", "files")
        return {name: getattr(self, name) for name in names}

    def holds(self, needs: Iterable[str], looks: Mapping[str, Any]) -> bool:
        """Return whether a run may go on from here.

        Args:
            needs: identities of the averages that it needs.
            looks: what has to have been looked at.
        """
        return set(needs) <= self.averages.keys() and self.looks == looks


class Store:
    """The states in one folder, for any number of processes of one host.

    Args:
        folder: made when something is to be kept.
        limit_gb: gigabytes that it may take; None: what the disk has.
    """

    def __init__(self, folder: Path, limit_gb: float | None = None) -> None:
        self.folder = folder
        self.limit_gb = limit_gb

    @property
    def snapshots(self) -> Path:
        """The folder of the snapshots."""
        return self.folder / "snapshots"

    @property
    def trajectories(self) -> Path:
        """The folder of those in training."""
        return self.folder / "trajectories"

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Hold the store's lock: shared by those who use it, exclusive for who removes.

        It is the kernel's, so it ends with the process that holds it, however that ends.
        """
        self.make(self.folder)
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, kind)
            yield

    def make(self, folder: Path) -> None:
        """Make a folder.

        Raises:
            UserError: if it cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.place}: cannot be written ({error.strerror})") from error

    @property
    def place(self) -> str:
        """What the user set to have it there."""
        return f"share.dir={self.folder}"

    def branches(self, key: str = "*", execution: str = "") -> list[Branch]:
        """Return the states that there are, sorted by name.

        Args:
            key: of the recipe's part; by default any.
            execution: key of the execution; by default any.
        """
        found = []
        for folder in [key] if key != "*" else _names(self.folder):
            for name in _names(self.folder / folder):
                path = self.folder / folder / name
                if not name.startswith(execution) or not name.endswith(".json") or "-" not in name:
                    continue
                if path.parent == self.trajectories:
                    continue
                try:
                    values = json.loads(path.read_text())
                    found.append(Branch(path.with_suffix(".pt"), **values))
                except OSError:  # set aside meanwhile
                    continue
                except (ValueError, TypeError):
                    print(f"{path} is damaged: set aside", flush=True)
                    with contextlib.suppress(UserError):
                        set_aside(path, "damaged")
        return sorted(found, key=lambda branch: (branch.name, branch.path.name))

    def in_training(self) -> list[tuple[Path, dict[str, Any]]]:
        """Return the folders of trajectories in training, each with its keys by epoch."""
        homes = [self.trajectories / name for name in _names(self.trajectories)]
        found = [(home, read_json(home / "path.json").get("keys", {})) for home in homes]
        return [(home, keys) for home, keys in found if keys]

    def find(
        self, key: str, execution: str, needs: Iterable[str], looks: Mapping[str, Any]
    ) -> list[Branch]:
        """Return the states under these keys that a run may go on from."""
        return [b for b in self.branches(key, execution) if b.holds(needs, looks)]

    def load(
        self, branch: Branch, use: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> dict[str, Any] | None:
        """Return a state, on the CPU; None if it is damaged: then it is named and set aside.

        Damaged it is, too, if it is another state than its name or its description says, or a
        snapshot that it refers to is missing or damaged. Loading never executes code.

        Args:
            branch: which one.
            use: is done with the state while nothing can be removed, such as taking its snapshots.
        """
        with self._locked(fcntl.LOCK_SH):
            try:
                content = read_file(branch.path, limit=None)
            except OSError:
                content = b""
            execution, _, named = branch.path.stem.rpartition("-")
            own = {
                "prefix": {"recipe": branch.key, "execution": execution},
                "description": branch.description(),
            }
            state = read_state(content) if checksum(content) == named else None
            damaged = None
            if state is None or any(state.get(key) != value for key, value in own.items()):
                damaged = branch.path
            else:
                for name in state["files"]:
                    if not checksum_matches(self.snapshots / name):
                        damaged = self.snapshots / name
            if damaged is None:
                use(state)
                return state
            print(
                f"{damaged} is damaged, or of another run: {branch.name} is set aside and will be "
                "trained again",
                flush=True,
            )
            for path in {damaged, branch.path, branch.path.with_suffix(".json")}:
                with contextlib.suppress(UserError):  # gone, or set aside by another process
                    set_aside(path, "damaged")
            return None

    def save(
        self,
        key: str,
        execution: str,
        state: Mapping[str, Any],
        snapshots: Iterable[Path] = (),
        **description: Any,
    ) -> Branch:
        """Keep a state and take the files that it refers to.

        Args:
            key: of the recipe's part.
            execution: key of the execution.
            state: tensors, numbers and names.
            snapshots: files, whose names have their checksums.
            description: name, epoch, averages and looks, as a `Branch` has them.

        Raises:
            UserError: if there is no room for it, or it cannot be written; nothing is kept then.
        """
        snapshots = list(snapshots)
        files = sorted({path.name for path in snapshots})
        prefix = {"recipe": key, "execution": execution}
        known = {**description, "files": files}
        buffer = io.BytesIO()
        torch.save({**state, "prefix": prefix, "files": files, "description": known}, buffer)
        content = buffer.getvalue()
        # Those in the store's folder become links, which take nothing.
        new = [path for path in snapshots if not path.is_relative_to(self.folder)]
        self.make_room(len(content) + sum(path.stat().st_size for path in new))
        path = self.folder / key / f"{execution}-{checksum(content)}.pt"
        branch = Branch(path, files=files, size=len(content), **description)
        with self._locked(fcntl.LOCK_SH):
            self.make(path.parent)
            for snapshot in snapshots:
                link(snapshot, self.snapshots / snapshot.name, self.place)
            write_atomically(path, content, self.place)
            described = branch.description() | {"size": branch.size}
            write_atomically(path.with_suffix(".json"), _json(described), self.place)
        return branch

    def write(self, path: Path, values: Any) -> None:
        """Write values as JSON to a file of the store, while nothing can be removed."""
        with self._locked(fcntl.LOCK_SH):
            self.make(path.parent)
            write_atomically(path, _json(values), self.place)

    def need(self, key: str, runs: Mapping[str, Iterable[Path]]) -> None:
        """Take note that runs will go on from a state under `key`.

        Args:
            key: of the recipe's part.
            runs: by run id, the folders in which a run leaves its outcome.
        """
        with self._locked(fcntl.LOCK_EX):
            self.make(self.folder / key)
            path = self.folder / key / "needed_by.json"
            known = read_json(path)
            for run_id, places in runs.items():
                added = [str(place.resolve()) for place in places]
                known[run_id] = list(dict.fromkeys([*known.get(run_id, []), *added]))
            write_atomically(path, _json(known), self.place)

    def needed_by(self, key: str) -> list[str]:
        """Return the ids of the runs that go on from a state under a key and have not ended."""
        known = read_json(self.folder / key / "needed_by.json")
        return sorted(
            run_id
            for run_id, folders in known.items()
            if not any(Path(folder, "result.json").exists() for folder in folders)
        )

    def forget(self) -> None:
        """Forget which runs need what."""
        with self._locked(fcntl.LOCK_EX):
            for path in self.folder.glob("*/needed_by.json"):
                path.unlink()

    def used(self) -> int:
        """Return the bytes of all files that the store has."""
        sizes = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found = Path(folder, name).lstat()
                    sizes[found.st_dev, found.st_ino] = found.st_size
        return sum(sizes.values())

    def free(self) -> float:
        """Return the bytes that may still be kept: up to the limit and to what the disk has."""
        self.make(self.folder)
        disk = shutil.disk_usage(self.folder)
        free = disk.free - FREE_SHARE * disk.total
        if self.limit_gb is not None:
            free = min(free, self.limit_gb * GIGABYTE - self.used())
        return free

    def make_room(self, size: int) -> None:
        """See that `size` bytes can be kept: what no run needs goes if it has to.

        Raises:
            UserError: if that is not enough.
        """
        if size <= self.free():
            return
        gone = self.clean()
        if gone:
            freed = sum(branch.size for branch in gone)
            print(
                f"{self.folder}: {len(gone)} states that no run needs any more made room "
                f"({freed / GIGABYTE:.3g} GB)",
                flush=True,
            )
        if size > (free := self.free()):
            limit = "null" if self.limit_gb is None else f"{self.limit_gb:g}"
            raise UserError(
                f"share.limit_gb={limit}: {size / GIGABYTE:.3g} GB more do not fit into "
                f"{self.folder}, which has room for {max(free, 0) / GIGABYTE:.3g} GB; raise the "
                "limit, make room, or narrow share.carry"
            )

    def clean(self) -> list[Branch]:
        """Remove the states that no run needs which has not ended, and what is left behind by them.

        Returns:
            The states that went.
        """
        with self._locked(fcntl.LOCK_EX):  # nobody is reading or writing a state
            gone = [branch for branch in self.branches() if not self.needed_by(branch.key)]
            for branch in gone:
                branch.path.with_suffix(".json").unlink(missing_ok=True)  # first: it is the entry
                branch.path.unlink(missing_ok=True)
            entries = {branch.path for branch in self.branches()}
            for path in self.folder.glob("*/*-*.pt*"):
                if path not in entries:  # of a write that was killed, or set aside
                    path.unlink()
            for path in (*self.folder.glob("*/*.json.damaged"), *self.folder.glob("*/.*.part")):
                path.unlink()
            kept = {name for branch in self.branches() for name in branch.files}
            for path in self.snapshots.glob("*"):
                if path.name not in kept:
                    path.unlink()
            for path in self.folder.glob("*/needed_by.json"):
                key = path.parent.name
                if not self.branches(key) and not self.needed_by(key):
                    shutil.rmtree(path.parent)
            for folder in self.folder.glob("*/"):
                if folder not in (self.snapshots, self.trajectories):
                    with contextlib.suppress(OSError):  # it is not empty
                        folder.rmdir()
            for path in self.trajectories.glob("*.json"):
                if not any(self.needed_by(key) for key in read_json(path).get("keys", [])):
                    path.unlink()
            for home, keys in self.in_training():
                if not any(self.needed_by(key) for key in keys.values()):
                    _remove_unless_held(home)
        return gone


def _remove_unless_held(folder: Path) -> None:
    """Remove a trajectory's folder unless a process trains it."""
    with contextlib.suppress(OSError), (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)


def _names(folder: Path) -> list[str]:
    """Return what is in a folder; nothing if it is none, or gone meanwhile."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _json(values: Any) -> bytes:
    return (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode()
