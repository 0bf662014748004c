"""Weights & Biases beside the records: a mirror that no run depends on."""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import ValidationError

from phaseavg.config import Folder
from phaseavg.errors import Interrupted
from phaseavg.identity import group_id, parts_of, run_id
from phaseavg.runs.record import flattened

INIT_SECONDS = 8.0  # that a server has to answer: with all that W&B does beside it, 15 at most
FINISH_SECONDS = 60.0  # that an upload may take when a run is over; `wandb sync` sends the rest
TAG_LENGTH, NAME_LENGTH = 64, 128  # that W&B takes


def by_table(cells: Sequence[str]) -> dict[str, str]:
    """Return the cells of each table, so that runs can be filtered and grouped by those of one.

    Args:
        cells: each as table, data set, network and column with blanks between them.
    """
    found: dict[str, list[str]] = {}
    for cell in cells:
        table, _, rest = cell.partition(" ")
        found.setdefault(table, []).append(rest)
    return {table: " + ".join(rest) for table, rest in found.items()}


def reason_of(error: Exception) -> str:
    """Return in one line why W&B failed."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"  # the value may be a secret
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


class Tracking:
    """Tracks nothing: the interface of what is told about a run while it trains.

    A context manager around training.

    Args:
        recipe: of the run.
        config: its settings and what they run on.
        history: metrics of the epochs before this start.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def log(self, line: Mapping[str, Any]) -> None:
        """Take the metrics of an epoch."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Take the outcome of the run."""


class WandB(Tracking):
    """A W&B run for each run, under its run id, with one curve however often it was interrupted.

    In a sweep over tables it is named after its first cell and grouped by table. Each start writes
    the whole history again, and removes the local folders of earlier starts. An error of W&B is
    reported in one line and ends the tracking, never the run.

    Args:
        recipe: gives the name outside of tables, and without its seed the group.
        config: as `Tracking`.
        history: as `Tracking`.
        mode: `offline` writes to `dir` alone, `online` sends as well, `disabled` does neither.
        project: W&B's.
        entity: W&B's account or team; the user's own by default.
        dir: holds W&B's folder, `wandb`.
        cells: of tables that the run is part of, each as table, data set, network and column with
            blanks between them.
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
        """Return what the W&B run is called and found by: `name`, `group`, `tags`."""
        parts = parts_of(self.recipe)
        tables = [f"table-{cell.split()[0]}" for cell in self.cells]
        tags = dict.fromkeys(t[:TAG_LENGTH] for t in (*parts.values(), *tables, *self.cells))
        if self.cells:
            name, group = f"{self.cells[0]} seed {self.recipe['seed']}", tables[0]
        else:
            name = "-".join([*parts.values(), f"seed{self.recipe['seed']}"])
            group = group_id(self.recipe)
        return {"name": name[:NAME_LENGTH], "group": group[:NAME_LENGTH], "tags": list(tags)}

    def __enter__(self) -> Self:
        self._attempt("start", self._start)
        return self

    def _start(self) -> None:
        for name in [n for n in os.environ if n.startswith("WANDB_") and not os.environ[n]]:
            del os.environ[name]  # W&B takes an empty value for a wrong one
        # Without a network, its reports on errors would hold up the end of the program.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # takes a second, and not everybody has it

        self.dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.dir):  # else W&B would quietly write elsewhere
            pass
        name = run_id(self.recipe)
        self._run = wandb.init(
            id=name,
            **self.labels(),
            job_type="train",
            config={**self.config, "run_id": name, "cells": by_table(self.cells)},
            mode=self.mode,
            project=self.project,
            entity=self.entity,
            dir=str(self.dir.absolute()),  # its service may be at home in another folder
            settings=wandb.Settings(
                silent=True,  # what it has to say is said here, in one line
                console="off",
                disable_git=True,  # the config has the commit; a remote's address may hold a token
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
        if self.mode == "disabled":  # what is there is all there is
            return
        current = Path(self._run.settings.sync_dir)
        own = re.compile(rf"(offline-)?run-\d{{8}}_\d{{6}}-{re.escape(name)}(-\d+)?")
        for earlier in (self.dir / "wandb").iterdir():
            if own.fullmatch(earlier.name) and earlier.name != current.name:
                shutil.rmtree(earlier, ignore_errors=True)

    def _log(self, line: Mapping[str, Any]) -> None:
        # W&B groups its panels by what is before the first slash.
        self._run.log(flattened(line, "/"), step=line["epoch"], commit=True)

    def log(self, line: Mapping[str, Any]) -> None:
        """Send the metrics of an epoch."""
        if self._run is not None:
            self._attempt("write", lambda: self._log(line))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Send the outcome to the summary and close the W&B run.

        All of it is under `result`; `test_error`, too, becomes that of the result, which is the
        average's where there is one.
        """
        if self._run is not None:
            self._attempt("write", lambda: self._summarise(result))
        self._close(0 if result["status"] == "finished" else 1)

    def _summarise(self, result: Mapping[str, Any]) -> None:
        phases = {f"phase_{phase['phase']}": phase for phase in result.get("phases", ())}
        kept = {key: value for key, value in result.items() if key != "phases"}
        summary = {key: kept[key] for key in ("test_error", "best_test_error") if key in kept}
        self._run.summary.update({**summary, "result": {**kept, **phases}})

    def _close(self, exit_code: int) -> None:
        """Close the W&B run, if one is open; a code other than 0 marks it as failed."""
        run, self._run = self._run, None
        if run is not None:
            self._attempt("write", lambda: run.finish(exit_code=exit_code))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(128 + error.number if isinstance(error, Interrupted) else 1)

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._run = None
            print(
                f"train.py: W&B could not {what} ({reason_of(error)}): this run goes on without "
                "it, and its records are complete; tracking=none turns W&B off",
                file=sys.stderr,
                flush=True,
            )
            if wandb := sys.modules.get("wandb"):
                # Of a service that has died, or the next run of a sweep would still talk to it.
                with contextlib.suppress(Exception):
                    wandb.teardown(exit_code=1)
