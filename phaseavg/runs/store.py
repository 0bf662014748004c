"""Where shared trajectories leave the states at which runs branch off from them.

<key of the recipe's part>/<key of the execution>-<checksum>.pt     a state, and
<key of the recipe's part>/<key of the execution>-<checksum>.json   what it holds; written last
snapshots/*.pt          weights of single epochs that states refer to; written once, never changed
trajectories/           what each leaves where, and how far those in training are

.phaseavg-store         marks a folder that was made as a store: no other has files set aside

Every file is whole or not there, and what is read is what its name has the checksum of. Files with
other names are ignored, and none is ever removed. The user may remove the whole folder at any time:
that costs epochs, nothing else.
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phaseavg.averaging.rna import is_intact
from phaseavg.errors import UserError
from phaseavg.runs.files import checksum, link, read_file, read_json, set_aside, write_atomically
from phaseavg.runs.folder import read_state

GIGABYTE = 10**9

MARKER = ".phaseavg-store"
"""A file in every folder that was made as a store."""

KEY = re.compile(r"[0-9a-f]{16}")
"""The name of a folder of states: the key of the recipe's part."""

DESCRIPTION = re.compile(r"[0-9a-f]{8}-[0-9a-f]{16}\.json")
"""The name of a state's description: the key of the execution and the state's checksum."""

SNAPSHOT = re.compile(r"snapshot-\d{4,}-[0-9a-f]{16}\.pt")
"""The name of a snapshot."""


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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def snapshots(self) -> Path:
        """The folder of the snapshots."""
        return self.folder / "snapshots"

    @property
    def trajectories(self) -> Path:
        """The folder of those in training."""
        return self.folder / "trajectories"

    def make(self, folder: Path) -> None:
        """Make a folder of the store, and mark the store if it is new.

        Raises:
            UserError: if it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not any(self.folder.iterdir()):
                (self.folder / MARKER).touch()
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
        for folder in filter(KEY.fullmatch, [key] if key != "*" else _names(self.folder)):
            for name in filter(DESCRIPTION.fullmatch, _names(self.folder / folder)):
                path = self.folder / folder / name
                if not name.startswith(execution):
                    continue
                # One that went meanwhile, or is damaged, describes nothing.
                with contextlib.suppress(OSError, ValueError, TypeError):
                    values = json.loads(path.read_text())
                    found.append(Branch(path.with_suffix(".pt"), **values))
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

    def load(self, branch: Branch) -> dict[str, Any] | None:
        """Return a state, on the CPU; None if it is damaged, which is said in one line.

        Damaged it is, too, if it is another state than its name or its description says, or a
        snapshot that it refers to is missing or damaged. In a folder with the store's marker it is
        set aside then. Loading never executes code.

        Args:
            branch: which one.
        """
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
                if not SNAPSHOT.fullmatch(name):
                    damaged = branch.path
                elif not is_intact(self.snapshots / name):
                    damaged = self.snapshots / name
        if damaged is None:
            return state
        print(
            f"{damaged} is damaged, or of another run: {branch.name} is left out and will be "
            "trained again",
            flush=True,
        )
        if (self.folder / MARKER).exists():
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
            UserError: if it cannot be written; nothing is kept then.
        """
        snapshots = list(snapshots)
        files = sorted({path.name for path in snapshots})
        prefix = {"recipe": key, "execution": execution}
        known = {**description, "files": files}
        buffer = io.BytesIO()
        torch.save({**state, "prefix": prefix, "files": files, "description": known}, buffer)
        content = buffer.getvalue()
        path = self.folder / key / f"{execution}-{checksum(content)}.pt"
        branch = Branch(path, files=files, size=len(content), **description)
        self.make(path.parent)
        for snapshot in snapshots:
            link(snapshot, self.snapshots / snapshot.name, self.place)
        write_atomically(path, content, self.place)
        described = branch.description() | {"size": branch.size}
        write_atomically(path.with_suffix(".json"), _json(described), self.place)
        return branch

    def write(self, path: Path, values: Any) -> None:
        """Write values as JSON to a file of the store."""
        self.make(path.parent)
        write_atomically(path, _json(values), self.place)

    def used(self) -> int:
        """Return the bytes of all files that the store has."""
        sizes = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found = Path(folder, name).lstat()
                    sizes[found.st_dev, found.st_ino] = found.st_size
        return sum(sizes.values())


def _names(folder: Path) -> list[str]:
    """Return what is in a folder; nothing if it is none, or gone meanwhile."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _json(values: Any) -> bytes:
    return (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode()
