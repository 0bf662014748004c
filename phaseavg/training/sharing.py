"""A run that starts from a shared prefix, and one that saves prefixes for other runs."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from phaseavg.averaging import Averager
from phaseavg.config import Settings
from phaseavg.errors import UserError, told
from phaseavg.runs.files import link
from phaseavg.runs.folder import RunFolder
from phaseavg.runs.prefixes import OWN, Average, Prefixes, Saved, execution_key, load, save, saved
from phaseavg.training.state import TrainingState


def shares(settings: Settings) -> bool:
    """Return whether a run may start from a shared prefix.

    A rerun does not, nor does a run that saves its trajectory, of which a prefix has no files.
    """
    return settings.share.enabled and not settings.rerun and settings.save_trajectory == "none"


class Sharing:
    """The shared prefixes of one run.

    Args:
        settings: of the run, with nothing of its execution left open.
        device: that it is trained on.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.folder, self.keep = settings.share.dir, settings.share.keep
        self._prefixes = Prefixes(settings)

    def restore(self, state: TrainingState, folder: RunFolder) -> None:
        """Resume a run from its latest checkpoint, or from a shared prefix that goes beyond it.

        Raises:
            UserError: if a checkpoint was saved by other code or with other data.
        """
        folder.restore(state)
        if not (shares(self.settings) and self.folder.is_dir()):
            return
        execution = execution_key(self.settings, self.device)
        started = -(-state.step // state.steps_per_epoch)  # epochs, the present one included
        for epochs in range(self._prefixes.limit, started, -1):
            needs = self._needs(epochs)
            for prefix in saved(self.folder, self._prefixes.key(epochs), epochs, execution):
                complete = set(needs.values()) <= prefix.averages.keys()
                content = load(prefix) if complete else None
                if content is not None and self._link_files(prefix, content, needs):
                    self._adopt(state, content, prefix, needs, epochs)
                    return

    def is_due(self, epochs: int) -> bool:
        """Return whether the state after the last update of an epoch is saved for other runs."""
        return epochs in self.keep

    def save(self, state: TrainingState) -> None:
        """Save the state for runs that start from it, and drop averages that no later one needs.

        If it cannot be written, that is reported, and these runs are trained alone.
        """
        epochs = state.step // state.steps_per_epoch
        needs = self._needs(epochs, state.guests)
        averages = {n: a.average for n, a in state.averagers.items() if n in needs and a.average}
        content = state.state_dict() | {
            "run_id": self.settings.run_id,
            "snapshots": {name: [p.name for p in a.files()] for name, a in averages.items()},
        }
        try:
            save(
                self.folder,
                self._prefixes.key(epochs),
                epochs,
                execution_key(self.settings, self.device),
                content,
                {identity: name for name, identity in needs.items()},
                [file for average in averages.values() for file in average.files()],
            )
        except UserError as error:
            print(f"{error}; the runs that start from it will be trained alone", flush=True)
        for name, guest in self.settings.share.guests.items():
            if guest.until <= epochs:
                state.guests.pop(name, None)

    def _needs(self, epochs: int, guests: Mapping[str, Averager] | None = None) -> dict[str, str]:
        """Return the identities of the averages after `epochs` epochs, those of guests included.

        Args:
            epochs: finished epochs.
            guests: that count; by default all that are needed at this epoch or later.
        """
        needs = self._prefixes.needs(epochs)
        for name, guest in self.settings.share.guests.items():
            counts = guest.until >= epochs if guests is None else name in guests
            identity = Average(guest.averaging, guest.epochs).identity(epochs)
            if counts and identity:
                needs[name] = identity
        return needs

    def _link_files(
        self, prefix: Saved, content: Mapping[str, Any], needs: Mapping[str, str]
    ) -> bool:
        """Link the files that averages refer to; return False if the prefix was removed."""
        own = self.settings.run_folder / "snapshots"
        place = f"runs_dir={self.settings.runs_dir}"
        try:
            for identity in needs.values():
                for name in content["snapshots"].get(prefix.averages[identity], ()):
                    link(self.folder / "snapshots" / name, own / name, place, anew=True)
        except FileNotFoundError:
            return False
        return True

    def _adopt(
        self,
        state: TrainingState,
        content: dict[str, Any],
        prefix: Saved,
        needs: Mapping[str, str],
        epochs: int,
    ) -> None:
        """Load a prefix as if the run had trained it alone."""
        names = {own: prefix.averages[identity] for own, identity in needs.items()}
        averagers = {
            own: averager.state_dict()
            | {"ended": epochs - 1}
            | ({"average": content["averagers"][names[own]]["average"]} if own in names else {})
            for own, averager in state.averagers.items()
        }
        history = [as_own(line, names, state) for line in content["history"]]
        seconds = {k: v for k, v in content["seconds"].items() if k not in ("saving", "guests")}
        segments = list(content["inherited"])
        before = segments[-1]["last_epoch"] if segments else 0
        if before < epochs:
            theirs = _seconds(content["history"], content["seconds"])
            segments.append(
                {
                    "trajectory": content["run_id"],
                    "prefix": prefix.path.stem.rpartition("-")[0],
                    "first_epoch": before + 1,
                    "last_epoch": epochs,
                    "seconds": theirs - content["inherited_seconds"],
                }
            )
        own = {
            "averagers": averagers,
            "history": history,
            "seconds": seconds,
            "inherited": segments,
            "inherited_seconds": _seconds(history, seconds),
        }
        try:
            state.load_state_dict({**content, **own})
        except (ValueError, LookupError) as error:
            raise UserError(
                f"{prefix.path}: does not fit: {told(error)}; undo that change, remove "
                f"{self.folder}, or set share=false"
            ) from error


def _seconds(history: Iterable[Mapping[str, Any]], present: Mapping[str, float]) -> float:
    """Return the seconds of all kinds in finished epochs and in the present one."""
    return sum(sum(line["seconds"].values()) for line in history) + sum(present.values())


def as_own(
    line: Mapping[str, Any], names: Mapping[str, str], state: TrainingState
) -> dict[str, Any]:
    """Return the metrics of a prefix's epoch as those of a run that was trained alone.

    Args:
        line: of the prefix.
        names: the prefix's names of the run's averages that have begun, by the run's own names.
        state: of the run.
    """
    theirs = line.get("observers", {}) | line.get("guests", {})
    metrics = {k: v for k, v in line.items() if k not in ("observers", "guests")}
    seconds = {k: v for k, v in line["seconds"].items() if k in ("train", "evaluation")}

    def average_of(name: str) -> tuple[dict[str, Any], dict[str, float]]:
        average = dict(theirs.get(names.get(name, ""), {}))
        return average, average.pop("seconds", {"averaging": 0.0, "evaluation": 0.0})

    own, spent = average_of(OWN)
    if own:
        metrics[OWN] = own
    seconds["averaging"] = spent["averaging"]
    seconds["evaluation"] = seconds.get("evaluation", 0.0) + spent["evaluation"]
    for group, members in (("observers", state.observers), ("guests", state.guests)):
        for name in members:
            average, spent = average_of(name)
            metrics.setdefault(group, {})[name] = average | {"seconds": spent}
            seconds[group] = seconds.get(group, 0.0) + sum(spent.values())
    return metrics | {"seconds": seconds}


def inherited(state: TrainingState) -> dict[str, Any]:
    """Return for the record what a run has taken over from shared prefixes.

    Returns:
        `epochs`, of the last one only the training; `seconds` in the run's metrics that were spent
        there; `segments`: the runs that trained these epochs, with the seconds that each took.
    """
    last = state.inherited[-1]["last_epoch"] if state.inherited else 0
    return {"epochs": last, "seconds": state.inherited_seconds, "segments": state.inherited}
