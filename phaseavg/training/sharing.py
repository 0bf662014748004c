"""Start runs from shared prefixes, and save prefixes for other runs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from phaseavg import processes
from phaseavg.config import Settings
from phaseavg.errors import UserError, describe
from phaseavg.runs.files import link
from phaseavg.runs.folder import MISMATCHES, RunFolder
from phaseavg.runs.prefixes import OWN, Prefixes, Saved, execution_of, load, saved, saved_lengths
from phaseavg.training.state import TrainingState


def uses_prefixes(settings: Settings) -> bool:
    """Return whether a run may start from a shared prefix.

    A rerun may not, nor a run that saves its trajectory (a prefix has no trajectory files), nor a
    run of several processes, which sweeps do not train.
    """
    possible = settings.share.enabled and not settings.rerun and processes.count() == 1
    return possible and settings.save_trajectory == "none"


class Sharing:
    """Starts a run from a shared prefix, or saves one.

    Args:
        settings: the run's settings, with execution options resolved.
        device: the device for training.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.folder = settings.share.dir
        self._prefixes = Prefixes(settings)

    @cached_property
    def _execution(self) -> dict[str, Any]:
        return execution_of(self.settings, self.device)

    def restore(self, state: TrainingState, folder: RunFolder) -> None:
        """Resume a run from its latest checkpoint or from a longer shared prefix.

        Raises:
            UserError: if a checkpoint does not fit the code or the data.
        """
        end = self.settings.share.prefix
        if end is not None and any(
            prefix.path.parent == folder.path
            for prefix in saved(self.folder, self._prefixes.key(end), end)
        ):
            folder.remove_checkpoints()  # it is finished, but `is_saved` found no usable prefix
        folder.restore(state)
        if not uses_prefixes(self.settings):
            return
        started = -(-state.step // state.steps_per_epoch)  # epochs, including the current one
        limit = self._prefixes.limit
        for epochs in [n for n in saved_lengths(self.folder) if started < n <= limit]:
            needs = self._prefixes.needs(epochs)
            for prefix, content in self._find(epochs, needs.values()):
                if self._link_files(prefix.files(needs.values())):
                    self._adopt(state, content, prefix.path, needs, epochs)
                    return

    def is_saved(self) -> bool:
        """Return whether the run is a prefix that is saved and intact."""
        if (end := self.settings.share.prefix) is None:
            return False
        for prefix, _ in self._find(end, self._prefixes.needs(end).values()):
            print(f"{prefix.path}: the first {end} epochs were saved before", flush=True)
            return True
        return False

    def save(self, state: TrainingState, folder: RunFolder) -> None:
        """Save a prefix; a write error is only reported, as its runs can train without it."""
        averages = {name: a.average for name, a in state.observers.items() if a.average}
        prefix = {
            "key": self._prefixes.key(state.step // state.steps_per_epoch),
            "averages": {
                identity: [f"snapshots/{path.name}" for path in average.files()]
                for identity, average in averages.items()
            },
            "execution": self._execution,
        }
        try:
            content = state.state_dict() | {"prefix": prefix}
            folder.save_checkpoint(state.step, content, state.files(), keep=1)
        except UserError as error:
            print(f"{error}; until then, each run of this prefix trains its epochs", flush=True)

    def _find(
        self, epochs: int, identities: Collection[str]
    ) -> Iterator[tuple[Saved, dict[str, Any]]]:
        """Yield the usable prefixes of this length with these averages, and their states."""
        for prefix in saved(self.folder, self._prefixes.key(epochs), epochs):
            if prefix.execution == self._execution and set(identities) <= prefix.averages.keys():
                content = load(prefix, identities)
                if content is not None:
                    yield prefix, content

    def _link_files(self, snapshots: Iterable[Path]) -> bool:
        """Link the snapshots of averages into the run folder; False if the prefix was removed."""
        try:
            for path in snapshots:
                link(path, self.settings.run_folder / "snapshots" / path.name)
        except FileNotFoundError:
            return False
        return True

    def _adopt(
        self,
        state: TrainingState,
        content: dict[str, Any],
        path: Path,
        needs: Mapping[str, str],
        epochs: int,
    ) -> None:
        """Load a prefix, with metrics as if the run had trained these epochs itself."""
        averagers = {}
        for own, averager in state.averagers.items():
            fresh = averager.state_dict()
            of_this_run = {"settings": fresh["settings"], "ended": epochs - 1}
            averagers[own] = content["averagers"].get(needs.get(own), fresh) | of_this_run
        history = [adapt_metrics(line, needs, state) for line in content["history"]]
        seconds = {k: v for k, v in content["seconds"].items() if k != "saving"}
        spent = sum(sum(line["seconds"].values()) for line in history) + sum(seconds.values())
        changes = {
            "averagers": averagers,
            "history": history,
            "seconds": seconds,
            "shared": {"epochs": epochs, "seconds": spent},
        }
        try:
            state.load_state_dict({**content, **changes})
        except MISMATCHES as error:
            raise UserError(
                f"{path}: does not fit: {describe(error)}; undo that change, remove "
                f"{self.folder}, or set share=false"
            ) from error


def adapt_metrics(
    line: Mapping[str, Any], identities: Mapping[str, str], state: TrainingState
) -> dict[str, Any]:
    """Return a prefix's metrics of one epoch, adapted to the averages of the run.

    Args:
        line: the metrics of the prefix.
        identities: the identities of the run's averages, their names in the prefix.
        state: the training state of the run.
    """
    averages = line.get("observers", {})
    metrics = {k: v for k, v in line.items() if k != "observers"}
    seconds = {k: v for k, v in line["seconds"].items() if k in ("train", "evaluation")}

    def split_average(name: str) -> tuple[dict[str, Any], dict[str, float]]:
        average = dict(averages.get(identities.get(name, ""), {}))
        return average, average.pop("seconds", {"averaging": 0.0, "evaluation": 0.0})

    own, spent = split_average(OWN)
    if own:
        metrics[OWN] = own
    seconds["averaging"] = spent["averaging"]
    seconds["evaluation"] = seconds.get("evaluation", 0.0) + spent["evaluation"]
    for name in state.observers:
        average, spent = split_average(name)
        metrics.setdefault("observers", {})[name] = average | {"seconds": spent}
        seconds["observers"] = seconds.get("observers", 0.0) + sum(spent.values())
    return metrics | {"seconds": seconds}
