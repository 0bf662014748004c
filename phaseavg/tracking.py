"""Mirror the metrics of runs to Weights & Biases; no run depends on it."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from phaseavg.config import Folder
from phaseavg.errors import Interrupted, describe
from phaseavg.identity import group_id, part_names, run_id
from phaseavg.runs.record import flatten

INIT_SECONDS = 8.0  # timeout for the server's answer; with W&B's overhead, 15 at most
FINISH_SECONDS = 60.0  # of the last upload; `wandb sync --include-online` uploads the rest
TAG_LENGTH, NAME_LENGTH = 64, 128  # W&B's limits


class Tracking:
    """The interface of trackers, context managers around training; this class tracks nothing.

    Args:
        recipe: the run's recipe.
        config: the run's settings and provenance.
        history: metrics of the epochs that are already trained.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        config: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
    ) -> None:
        self.recipe, self.config, self.history = recipe, config, history

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        pass

    def log(self, line: Mapping[str, Any]) -> None:
        """Log the metrics of an epoch."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Log the result of the run, after training."""


class WandB(Tracking):
    """Tracks each run as one W&B run under its run id, with one curve across interruptions.

    In a sweep over tables, a W&B run is named after its first cell and grouped by table. Each start
    uploads the complete history again and removes the local folders of earlier starts. An error of
    W&B is reported in one line and ends the tracking, but never the run.

    Args:
        recipe, config, history: see `Tracking`.
        mode: `offline` writes to `dir` only, `online` also uploads, `disabled` does neither.
        project: the W&B project.
        entity: the W&B account or team; by default the user's account.
        dir: parent folder of W&B's folder `wandb`.
        cells: table cells that contain the run, each written as table, data set, network and
            column, separated by spaces.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        config: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        mode: Literal["offline", "online", "disabled"] = "offline",
        project: str = "phaseavg",
        entity: str | None = None,
        dir: Folder = Path("runs"),  # noqa: A002 -- W&B's name for it
        cells: Sequence[str] = (),
    ) -> None:
        super().__init__(recipe, config, history)
        self.mode, self.project, self.entity, self.dir = mode, project, entity, dir
        self.cells = tuple(cells)
        self._run: Any = None

    def labels(self) -> dict[str, Any]:
        """Return the `name`, `group` and `tags` of the W&B run."""
        parts = part_names(self.recipe)
        tables = [f"table-{cell.split()[0]}" for cell in self.cells]
        tags = dict.fromkeys(t[:TAG_LENGTH] for t in (*parts.values(), *tables, *self.cells))
        if self.cells:
            name, group = f"{self.cells[0]} seed {self.recipe['seed']}", tables[0]
        else:
            name = "-".join([*parts.values(), f"seed{self.recipe['seed']}"])
            group = group_id(self.recipe)
        return {"name": name[:NAME_LENGTH], "group": group[:NAME_LENGTH], "tags": list(tags)}

    def __enter__(self) -> Self:
        with self._ending_on_errors():
            self._start()
        return self

    def _start(self) -> None:
        # Without a network, W&B's error reports would delay the end of the program.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # At a terminal without a key, W&B would ask for one and wait; `init_timeout` excludes that.
        os.environ.setdefault("WANDB_LOGIN_TIMEOUT", f"{INIT_SECONDS:.0f}")
        import wandb  # slow to import, and optional

        self.dir.mkdir(parents=True, exist_ok=True)
        name = run_id(self.recipe)
        cells: dict[str, str] = {}  # by table, so that W&B can filter runs by table
        for table, _, cell in (cell.partition(" ") for cell in self.cells):
            cells[table] = f"{cells[table]} + {cell}" if table in cells else cell
        self._run = wandb.init(
            id=name,
            **self.labels(),
            job_type="train",
            config={**self.config, "run_id": name, "cells": cells},
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            dir=str(self.dir.absolute()),  # the W&B service may have another working directory
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,  # the config has the commit; a remote URL may contain a token
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        for line in self.history:
            self._log(line)
        if self.mode == "online":
            print(f"W&B: {self._run.url}", flush=True)
        if self.mode != "disabled":
            current = Path(self._run.settings.sync_dir)
            for earlier in self.dir.glob(f"wandb/*run-*-{name}*"):
                if earlier.name != current.name:
                    shutil.rmtree(earlier, ignore_errors=True)

    def _log(self, line: Mapping[str, Any]) -> None:
        # W&B groups panels by the text before the first slash.
        self._run.log(flatten(line, "/"), step=line["epoch"], commit=True)

    def log(self, line: Mapping[str, Any]) -> None:
        """Log the metrics of an epoch."""
        with self._ending_on_errors():
            if self._run is not None:
                self._log(line)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result to the summary under `result`, and close the W&B run.

        `test_error` of the summary is the test error of the result, thus of the average if any.
        """
        phases = {f"phase_{phase['phase']}": phase for phase in result.get("phases", ())}
        flat = {key: value for key, value in result.items() if key != "phases"} | phases
        errors = {key: flat[key] for key in ("test_error", "best_test_error") if key in flat}
        with self._ending_on_errors():
            if self._run is not None:
                self._run.summary.update({**errors, "result": flat})
                self._run.finish(exit_code=0 if result["status"] == "finished" else 1)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with self._ending_on_errors():
            if error is not None and self._run is not None:
                interrupted = isinstance(error, Interrupted)
                self._run.finish(exit_code=128 + error.number if interrupted else 1)

    @contextlib.contextmanager
    def _ending_on_errors(self) -> Iterator[None]:
        """Report an error of W&B in one line and end the tracking."""
        try:
            yield
        except Exception as error:
            self._run = None
            reason = describe(error)
            print(
                f"train.py: W&B failed ({reason}); the run continues without W&B, and its records "
                "are complete; set tracking=none to turn W&B off",
                file=sys.stderr,
                flush=True,
            )
            if wandb := sys.modules.get("wandb"):
                # Otherwise the next run of a sweep would still use the dead service.
                with contextlib.suppress(Exception):
                    wandb.teardown(exit_code=1)
