"""All results as one page that opens from disk: tables, claims, figures, curves, and each run."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from plotly.offline import get_plotlyjs

from phaseavg.errors import UserError
from phaseavg.report.cells import CELL
from phaseavg.report.claims_page import judged
from phaseavg.report.curves import in_order, label_of, script
from phaseavg.report.figures.drawing import COLOURS, INDEX, place_of
from phaseavg.report.page_sections import (
    Section,
    Source,
    folder_section,
    shown_in,
    study_section,
)
from phaseavg.report.study import Study, cells_of_study
from phaseavg.report.tables import CAPTION, FORMATS, environment, grid, notes_of
from phaseavg.runs.files import write_atomically
from phaseavg.sweep.cells import title_of

TEMPLATES = Path(__file__).parent / "templates"
INDEX_PAGE, PLOTLY, ASSETS = "index.html", "plotly.min.js", ("page.css", "page.js")

MANIFEST = "page/written.json"
"""What a page consists of: only these files are ever replaced or removed by the next one."""

OWN = re.compile(r"index\.html|page/(plotly\.min\.js|page\.css|page\.js|curves/[0-9a-f]{16}\.js)")
"""The names of a page's files."""


def _tables(study: Study, folder: str, results: Path) -> list[dict[str, Any]]:
    cells = cells_of_study(study)
    found = []
    for name in study.request.tables:
        own, rows = (frame[frame["table"] == name] for frame in (cells, study.rows))
        lines = [
            line
            for line in grid(own)
            if line["kind"] == "ours" or any(map(str.strip, line["texts"]))
        ]
        networks = [
            {"name": f"{own_lines[0]['dataset']} {own_lines[0]['model']}", "lines": own_lines}
            for own_lines in _by_network(lines)
        ]
        files = [
            {"kind": kind, "href": quote(f"{folder}/tables/{name}.{kind}")}
            for kind in FORMATS
            if kind != "html" and (results / folder / "tables" / f"{name}.{kind}").exists()
        ]
        found.append(
            {
                "name": name,
                "title": f"{title_of(name)}: {study.request.tables[name].title}",
                "columns": list(dict.fromkeys(own["column"])),
                "networks": networks,
                "notes": notes_of(own, rows),
                "files": files,
                "coverage": _coverage(own),
            }
        )
    return found


def _by_network(lines: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: list[list[dict[str, Any]]] = []
    for line in lines:
        if line["first"]:
            groups.append([])
        groups[-1].append(line)
    return groups


def _coverage(cells: pd.DataFrame) -> dict[str, Any]:
    """Return how many cells of a table have runs, of how many seeds, and how many runs diverged."""
    filled = cells.loc[cells["n"] > 0, "n"]
    n = "" if filled.empty else "–".join(map(str, dict.fromkeys([filled.min(), filled.max()])))
    return {
        "filled": len(filled),
        "cells": len(cells),
        "n": n,
        "diverged": int(cells["diverged"].sum()),
    }


def _figures(folder: Path, results: Path) -> list[dict[str, Any]]:
    """Return the figures in a folder of the results, in the order of their index.

    Raises:
        UserError: if the index is damaged.
    """
    index = results / folder / INDEX
    if not index.exists():
        return []
    found = []
    try:
        for name, entry in dict(json.loads(index.read_text())).items():
            files = {
                kind: quote(f"{folder}/{name}.{kind}")
                for kind in ("svg", "png", "csv")
                if (index.parent / f"{name}.{kind}").exists()
            }
            if entry["missing"] and "csv" not in files:  # blank: its picture says so, and no more
                files = {}
            picture = files.get("svg") or files.get("png") or ""
            missing = entry["missing"] or ("" if picture else f"{name}.svg is not there.")
            found.append(
                {
                    "title": entry["title"],
                    "caption": entry["caption"],
                    "missing": missing,
                    "picture": picture,
                    "files": files,
                }
            )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{index}: is damaged ({error!r}); remove it and draw the figures anew"
        ) from error
    return found


def _pair(section: Section) -> list[str]:
    """Return the keys of two finished runs of one seed that a table compares; or none.

    Of two that average and do not, if there are such.
    """
    if section.study is None:
        return []
    finished = {run["run_id"]: run["key"] for run in section.shown if run["status"] == "finished"}
    by_cell = {
        (*(getattr(cell, key) for key in CELL), run.settings.seed): finished[run_id]
        for run_id, run in section.runs.items()
        if run_id in finished
        for cell in run.cells
    }
    plain = {
        finished.get(run_id)
        for run_id, run in section.runs.items()
        if run.settings.averaging["_target_"].endswith("NoAveraging")
    }
    pairs = []
    for (table, dataset, model, column, seed), key in by_cell.items():
        other = section.study.request.tables[table].baseline.get(column)
        beside = by_cell.get((table, dataset, model, other, seed))
        if beside:
            pairs.append([beside, key])
    apart = [pair for pair in pairs if pair[0] in plain and pair[1] not in plain]
    return next(iter([*apart, *pairs]), [])


def _context(sections: Sequence[Section], results: Path, paper: pd.DataFrame) -> dict[str, Any]:
    """Return what the template is filled with."""
    shown = []
    for section in sections:
        entry: dict[str, Any] = {
            "key": section.key,
            "title": section.title,
            "where": section.where,
            "runs": section.shown,
            "counts": Counter(run["status"] for run in section.shown),
            "study": None,
        }
        if section.study and section.source:
            study, folder = section.study, section.source.folder
            claims = judged(study.request.cells, study.rows, paper, study.paper)
            entry["study"] = {
                "lead": section.source.lead,
                "commands": section.source.commands,
                "remark": study.remark,
                "tables": _tables(study, folder, results),
                "claims": claims,
                "figures": _figures(place_of(section.source.overrides), results),
                "figures_folder": (results / place_of(section.source.overrides)).as_posix(),
            }
        shown.append(entry)
    studies = [entry for entry in shown if entry["study"]]
    names = dict.fromkeys(t["name"] for entry in studies for t in entry["study"]["tables"])
    by_name = {e["key"]: {t["name"]: t["coverage"] for t in e["study"]["tables"]} for e in studies}
    metrics = in_order(m for entry in shown for run in entry["runs"] for m in run["metrics"])
    pairs = [pair for section in sections if (pair := _pair(section))]
    return {
        "title": "Phase-wise weight averaging: results",
        "caption": CAPTION,
        "sections": shown,
        "studies": studies,
        "coverage": [(name, [by_name[e["key"]].get(name) for e in studies]) for name in names],
        "totals": [
            {
                "filled": sum(c["filled"] for c in by_name[e["key"]].values()),
                "cells": sum(c["cells"] for c in by_name[e["key"]].values()),
            }
            for e in studies
        ],
        "metrics": [(metric, label_of(metric)) for metric in metrics],
        "colours": COLOURS,
        "chosen": pairs[0] if pairs else [],
    }


def _written(results: Path) -> set[str]:
    """Return the files in a folder that an earlier page consists of, as its manifest names them."""
    try:
        names = json.loads((results / MANIFEST).read_text())
        return {name for name in names if OWN.fullmatch(name)}
    except (OSError, ValueError, TypeError):
        return set()


def _require_own(results: Path) -> None:
    """Check that no file is in the page's way that no earlier page was made of.

    Raises:
        UserError: if one is.
    """
    for name in (INDEX_PAGE, *(f"page/{asset}" for asset in (PLOTLY, *ASSETS))):
        if (results / name).exists() and name not in _written(results):
            raise UserError(
                f"{results / name}: is in the way, and {results / MANIFEST} does not name it as a "
                "file of an earlier page; move it away or name another folder with --results"
            )


def _write(results: Path, html: str, scripts: Mapping[str, str]) -> list[Path]:
    """Write the page and what it loads; what an earlier one loaded goes last.

    Whenever this is cut off, the page that is there loads the curves of its own runs or none.
    """
    place = f"--results={results}"
    content = {f"page/{PLOTLY}": get_plotlyjs().encode()}
    content |= {f"page/{name}": (TEMPLATES / name).read_bytes() for name in ASSETS}
    content |= {f"page/curves/{name}.js": text.encode() for name, text in scripts.items()}
    content |= {INDEX_PAGE: html.encode()}
    earlier = _written(results)

    def note(names: Iterable[str]) -> None:
        write_atomically(results / MANIFEST, json.dumps(sorted(names), indent=1).encode(), place)

    try:
        (results / "page/curves").mkdir(parents=True, exist_ok=True)
        note(earlier | content.keys())
        for name, text in content.items():
            write_atomically(results / name, text, place)
        for name in earlier - content.keys():
            (results / name).unlink(missing_ok=True)
        note(content)
    except OSError as error:
        raise UserError(f"{place}: the page could not be written ({error})") from error
    return [results / INDEX_PAGE, results / "page"]


def write_page(
    results: Path,
    sources: Sequence[Source],
    folders: Sequence[Path],
    conf: Path,
    paper: pd.DataFrame,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write the page `index.html` and the folder `page` beside it; return both.

    The same records give the same bytes.

    Args:
        results: the folder of all results.
        sources: the studies.
        folders: of other runs.
        conf: the folder of the configs.
        paper: the published cells.
        say: what is being done.

    Raises:
        UserError: if a folder of figures is damaged, or the page cannot be written.
    """
    _require_own(results)
    # First the folders that the user has named, so that a mistake does not wait for the studies.
    named, sections = [folder_section(n, folder) for n, folder in enumerate(folders, 1)], []
    for source in sources:
        say(f"{source.title}: composing and reading {' '.join(source.overrides)}")
        sections.append(study_section(source, conf, paper))
    sections += named
    for section in sections:
        for card in section.cards:
            if card.damage:
                say(f"{card.folder}: {card.state}")
        say(f"{section.title}: {len(section.cards)} runs")
        section.shown = shown_in(section)
    runs = [run for section in sections for run in section.shown]
    for number, run in enumerate(runs, start=1):
        run["number"] = number
    scripts = {r["curves"]: script(r["curves"], r["history"]) for r in runs if r["metrics"]}
    template = environment("html").get_template("page.html.j2")
    html = template.render(_context(sections, results, paper))
    results.mkdir(parents=True, exist_ok=True)
    return _write(results, html, scripts)
