"""Runs as a page shows them: what has come of each, also of those that have not ended."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phaseavg.errors import Diverged, told
from phaseavg.report.records import DAMAGED, phase_ends
from phaseavg.runs.folder import in_progress, read_failure
from phaseavg.runs.record import (
    has_ended,
    read_config,
    read_lines,
    read_result,
    require_one_run,
)

SIGNS = ("config.yaml", "result.json", "failure.json")
"""A folder that has one of these is a run's."""


@dataclass
class RunCard:
    """One run.

    Attributes:
        folder: where it is read.
        run_id: as recorded; of one without an outcome the name of its folder.
        config: as recorded; empty if it did not come so far.
        history: the lines of its metrics.
        result: its outcome; empty if it has none.
        failure: why the last attempt broke off, if it is known.
        training: whether a process is at it.
        damage: why the folder cannot be read, if it cannot; then nothing else is known.
    """

    folder: Path
    run_id: str
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    training: bool = False
    damage: str = ""

    @property
    def status(self) -> str:
        """One of `finished`, `diverged`, `training`, `broken off`, `damaged`."""
        if self.damage:
            return "damaged"
        return self.result.get("status") or ("training" if self.training else "broken off")

    @property
    def epochs(self) -> int | None:
        """Of the whole run; None where that is not known."""
        return next(reversed(phase_ends(self.config)), None)

    @property
    def state(self) -> str:
        """What has come of it, in words."""
        if self.status == "finished":
            return f"finished: test error {self.result['test_error']:.2f} %"
        if self.damage:
            return f"damaged: {self.damage}; move it away and repeat the run"
        done = f"{len(self.history)} of {self.epochs or 'unknown'} epochs"
        if self.status == "diverged":
            return f"{Diverged(self.result)}; {done}"
        if self.training:
            return f"{done}; being trained"
        return f"{done}; broke off{f': {self.failure}' if self.failure else ''}"

    @property
    def time(self) -> str:
        """What an outcome has cost, in words."""
        shared = self.result.get("inherited", {"epochs": 0, "seconds": 0.0})
        seconds = f"{self.result['seconds']:,.1f} s for {self.result['epochs']} epochs"
        if not shared["epochs"]:
            return seconds
        own = f"{shared['seconds']:,.1f} s, {shared['epochs']} epochs"
        return f"{seconds}; of these {own}, were shared"

    def made_with(self, kind: str, key: str) -> str:
        """Return what an entry of the provenance says, of all attempts that differ in it."""
        entries = [str(made[kind].get(key)) for made in self.result.get("provenance", [])]
        return " + ".join(dict.fromkeys(entries))


def read_card(folder: Path) -> RunCard:
    """Return what a run's folder says, if only that it is damaged."""
    card = RunCard(folder, folder.name)
    try:
        if (folder / "config.yaml").exists():
            card.config = read_config(folder)
        card.history = read_lines(folder)
        for line in card.history:
            int(line["epoch"])
        if (folder / "result.json").exists():
            card.result = read_result(folder)
            card.run_id = card.result["run_id"]
            require_one_run(card.result, card.config)
        else:
            card.failure = read_failure(folder) or ""
            card.training = in_progress(folder)
    except DAMAGED as error:
        return RunCard(folder, folder.name, damage=told(error))
    return card


def run_folders(place: Path) -> list[Path]:
    """Return the folders of runs in a folder, by name; none if it is not there."""
    found = {path.parent for sign in SIGNS for path in place.glob(f"*/{sign}")}
    return sorted(path for path in found if not path.name.startswith("."))


def cards_in(*places: Path) -> list[RunCard]:
    """Return the runs in some folders, by name; of one that is in several, the first that ended."""
    found: dict[str, Path] = {}
    for folder in (folder for place in places for folder in run_folders(place)):
        other = found.setdefault(folder.name, folder)
        if has_ended(folder) and not has_ended(other):
            found[folder.name] = folder
    return [read_card(folder) for _, folder in sorted(found.items())]
