"""What the page of all results shows: studies, folders of runs, and what it says of each run."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from phaseavg.errors import UserError
from phaseavg.report.curves import series
from phaseavg.report.run_cards import RunCard, cards_in
from phaseavg.report.study import Study, read_study
from phaseavg.runs.files import checksum
from phaseavg.sweep.cells import Cell, Run


@dataclass(frozen=True)
class Source:
    """A study that the page shows.

    Attributes:
        key: in addresses within the page.
        title: what it is.
        lead: how its runs differ from the paper's.
        overrides: of its cells.
        commands: that make what is missing of it.
        folder: of its tables, within that of all results.
    """

    key: str
    title: str
    lead: str
    overrides: tuple[str, ...]
    commands: tuple[str, ...]
    folder: str = "full"


SOURCES = (
    Source(
        "full",
        "At the paper's full size",
        "The paper's data sets, networks and 160 epochs.",
        ("table=all",),
        ("make tables", "make table1a"),
    ),
    Source(
        "cifar100-mini",
        "In miniature, on CIFAR-100",
        "5,000 of its images to train on and all 10,000 to test on, the 13-layer network at an "
        "eighth of its width, every phase a fifth as long.",
        ("preset=mini-cifar100", "table=all,ablations,gamma0", "model=cnn13"),
        ("make mini-cifar100",),
        "cifar100-mini",
    ),
)


@dataclass
class Section:
    """What the page shows of a study, or of a folder of runs.

    Attributes:
        key: in addresses.
        title: heading.
        cards: its runs.
        runs: those of cells, by run id.
        study: None of a folder of runs.
        source: likewise.
        where: the records lie, as a user would look for them.
        shown: of each card what the page says of it.
    """

    key: str
    title: str
    cards: list[RunCard]
    runs: Mapping[str, Run]
    study: Study | None = None
    source: Source | None = None
    where: tuple[str, ...] = ()
    shown: list[dict[str, Any]] = field(default_factory=list)


def study_section(source: Source, conf: Path, paper: pd.DataFrame) -> Section:
    """Return the section of a study, with its records read.

    Args:
        source: the study.
        conf: the folder of the configs.
        paper: the published cells.
    """
    study = read_study(source.overrides, conf, paper)
    settings = next(iter(study.runs.values())).settings
    places = (settings.runs_dir, settings.records_dir)
    where = tuple(dict.fromkeys(map(str, places)))
    return Section(source.key, source.title, cards_in(*places), study.runs, study, source, where)


def folder_section(number: int, folder: Path) -> Section:
    """Return the section of a folder of runs that was named.

    Raises:
        UserError: if there is none in it.
    """
    if not folder.is_dir():
        raise UserError(f"--runs={folder}: there is no such folder")
    cards = cards_in(folder)
    if not cards:
        raise UserError(f"--runs={folder}: there is no run in it; name a folder with runs")
    return Section(f"runs{number}", f"Runs in {folder}", cards, {}, where=(str(folder),))


def _places(cells: Sequence[Cell]) -> list[str]:
    """Return what the cells of a run are called: a line per data set and network."""
    lines = []
    for network, own in groupby(cells, key=lambda cell: (cell.dataset, cell.model)):
        columns = [f"{cell.table} {cell.column}" for cell in own]
        lines.append(f"{' '.join(network)}: {', '.join(columns)}")
    return lines


def _facts(card: RunCard) -> list[tuple[str, str]]:
    """Return what is known of how a run was made, with what it is called."""
    facts = [("state", card.state)]
    if not card.result:
        return facts
    modified = "True" in card.made_with("git", "modified")
    threads = card.made_with("execution", "threads")
    device = [card.made_with("execution", key) for key in ("device_name", "cpu_capability")]
    return [
        *facts,
        ("time", card.time),
        ("device", ", ".join([*device, f"{threads} thread{'s' * (threads != '1')}"])),
        ("precision", card.made_with("execution", "precision")),
        ("torch", card.made_with("versions", "torch")),
        ("commit", card.made_with("git", "commit") + ", with changes" * modified),
    ]


def _overrides(card: RunCard, run: Run | None) -> Sequence[str]:
    """Return the overrides of a run; of one that has not ended, if it is of a cell."""
    return card.result.get("overrides") or (run.overrides if run else ())


def shown_in(section: Section) -> list[dict[str, Any]]:
    """Return what the page says of each run of a section, those of cells first."""
    order = {run_id: number for number, run_id in enumerate(section.runs)}
    cards = sorted(section.cards, key=lambda card: order.get(card.run_id, len(order)))
    tails = Counter(card.folder.name.rpartition("-")[2] for card in cards)
    found = []
    for card in cards:
        run = section.runs.get(card.run_id)
        overrides, ended = _overrides(card, run), bool(card.result or card.damage)
        again = ["rerun=true"] if ended else []
        tail = card.folder.name.rpartition("-")[2]
        seed = card.config.get("seed", run.settings.seed if run else None)
        if run:
            first, *others = _places(run.cells)
            network, _, columns = first.partition(": ")
            column, *rest = columns.split(", ")
            name, about = f"{network}, {column}, seed {seed}", [", ".join(rest), *others]
        else:
            name = card.run_id
            about = [" ".join(o for o in overrides if not o.startswith("seed="))]
        found.append(
            {
                "key": f"{section.key}-{tail if tails[tail] == 1 else card.folder.name}",
                "curves": checksum(
                    "\n".join([*section.where, card.folder.name, card.run_id]).encode()
                ),
                "name": name,
                "about": "; ".join(filter(None, about)),
                "run_id": card.run_id,
                "status": card.status,
                "state": card.state,
                "outcome": f"{card.result['test_error']:.2f} %"
                if card.status == "finished"
                else card.state,
                "facts": _facts(card),
                "config": yaml.safe_dump(card.config, sort_keys=False) if card.config else "",
                "command": shlex.join(["python", "train.py", *overrides, *again])
                if overrides
                else "",
                "ended": ended,
                "history": card.history,
                "metrics": series(card.history),
            }
        )
    return found
