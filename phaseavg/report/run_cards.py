"""Runs as a page shows them: what has come of each, also of those that have not ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from phaseavg.errors import Diverged, told
from phaseavg.runs.folder import in_progress, read_failure
from phaseavg.runs.record import DAMAGED, has_ended, read_record

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
        shared = self.result["inherited"]
        seconds = f"{self.result['seconds']['total']:,.1f} s for {self.result['epochs']} epochs"
        if not shared["epochs"]:
            return seconds
        own = f"{shared['seconds']:,.1f} s, {shared['epochs']} epochs"
        return f"{seconds}; of these {own}, were shared"

    def made_with(self, kind: str, key: str) -> str:
        """Return what an entry of the provenance says, of all attempts that differ in it."""
        entries = [str(made[kind].get(key)) for made in self.result.get("provenance", [])]
        return " + ".join(dict.fromkeys(entries))


def phase_ends(config: Mapping[str, Any]) -> list[int]:
    """Return after how many epochs each phase of a recorded config ends.

    Returns:
        The ends in their order; none where `epochs` and `divisor` of its schedule do not say them.
    """
    schedule = config.get("schedule")
    if not isinstance(schedule, Mapping):
        return []
    lengths, divisor = schedule.get("epochs"), schedule.get("divisor", 1)
    if not isinstance(lengths, list) or type(divisor) is not int or divisor < 1:
        return []
    if any(type(length) is not int or length < 1 or length % divisor for length in lengths):
        return []
    return list(accumulate(length // divisor for length in lengths))


def read_card(folder: Path) -> RunCard:
    """Return what a run's folder says, if only that it is damaged."""
    try:
        record = read_record(folder)
    except DAMAGED as error:
        return RunCard(folder, folder.name, damage=told(error))
    card = RunCard(folder, folder.name, record.config, record.metrics, record.result)
    if record.result:
        card.run_id = record.result["run_id"]
    else:
        card.failure, card.training = read_failure(folder) or "", in_progress(folder)
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
