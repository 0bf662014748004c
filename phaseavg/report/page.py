"""Write the results page, which opens from disk: tables, verdicts, figures, runs, curves.

The page combines existing output of `make tables`, `make figures` and runs; it computes nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from phaseavg.errors import UserError
from phaseavg.report.claims_page import read_verdicts, summary_table
from phaseavg.report.figures import figure_title
from phaseavg.runs.files import write_atomically
from phaseavg.runs.records import load_runs

STUDIES = {
    "full": "At the paper's full size: its data sets, networks and 160 epochs.",
    "tenth": "At a tenth: a tenth of the training images, an eighth of the batch size and thin "
    "networks; epochs and learning rates are the paper's.",
}
"""The leads of the studies, by results folder; other folders with tables or verdicts follow."""

CURVES = {
    "weights.error": "Test error (%) of the optimizer's weights",
    "bn.error": "Test error (%) after a BatchNorm pass",
    "average.error": "Test error (%) of the average",
    "train.error": "Training error (%)",
    "train.loss": "Training loss",
}
"""The plotted metrics, by column of `load_runs`."""

COLUMNS = {
    "run_id": "run",
    "place": "in",
    "status": "status",
    "test_error": "test error (%)",
    "best_test_error": "best (%)",
    "epochs": "epochs",
    "seconds": "seconds",
    "device_name": "device",
    "precision": "precision",
    "torch": "torch",
    "command": "command",
}
"""The headings of the list of runs, by column of `load_runs`."""


def _tables(folder: Path) -> list[Markup]:
    """Return the HTML bodies of a study's tables, written by `make tables`."""
    texts = [path.read_text() for path in sorted((folder / "tables").glob("*.html"))]
    bodies = [text.partition("<body>")[2].partition("</body>")[0] for text in texts]
    # Each h1 becomes an h4 of the page. The text is already escaped.
    return [Markup(re.sub(r"(</?)h1>", r"\1h4>", body)) for body in bodies]  # noqa: S704


def _verdicts(folder: Path) -> Markup:
    """Return the table of a study's verdicts, written by `make tables`; empty without a file."""
    path = folder / "claims.csv"
    if not path.exists():
        return Markup()
    table = summary_table(read_verdicts(path))
    return Markup(table.to_html(index=False, border=0))  # noqa: S704 -- pandas escapes


def _figures(results: Path) -> list[dict[str, str]]:
    """Return the title and paths of each existing figure; the title names a scaled study."""
    pictures = sorted(results.glob("figures/**/*.svg"))
    return [
        {
            "title": figure_title(path.stem) + (f" ({study})" if study else ""),
            "src": path.relative_to(results).as_posix(),
            "numbers": path.with_suffix(".csv").relative_to(results).as_posix(),
            "caption": f"../docs/figures.md#{path.stem.partition('-')[0]}",
        }
        for path in pictures
        for study in [path.parent.relative_to(results / "figures").name]
    ]


def _runs(folders: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the ended runs in folders, with the headings of `COLUMNS`, and their curves by path.

    A run that was repeated with another precision or device has a row for each.
    """
    runs, metrics = load_runs(*folders)
    runs = runs.drop_duplicates(["run_id", "execution"])
    runs["place"] = [path.parent.as_posix() for path in runs["path"]]
    runs["command"] = "python train.py " + runs["overrides"].astype(str)
    metrics = metrics[metrics["path"].isin(runs["path"])].drop_duplicates(["path", "epoch"])
    runs["path"] = [path.as_posix() for path in runs["path"]]
    curves = {path: {"epoch": []} for path in runs["path"]} | {
        path.as_posix(): {
            "epoch": points["epoch"].tolist(),
            # JSON has no NaN; five digits exceed the resolution of a screen.
            **{
                name: [None if pd.isna(y) else float(f"{y:.5g}") for y in points[name]]
                for name in CURVES
                if name in points
            },
        }
        for path, points in metrics.groupby("path")
    }
    shown = runs.reindex(columns=[*COLUMNS, "path"]).rename(columns=COLUMNS)
    return shown, curves


def write_page(results: Path, folders: Sequence[Path]) -> list[Path]:
    """Write `index.html` and a copy of plotly's script; return both paths.

    Args:
        results: the folder of all results.
        folders: further runs folders to show.

    Raises:
        UserError: if a folder is missing or the page cannot be written.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--runs={folder}: folder not found")
    parts = [*results.glob("*/tables"), *results.glob("*/claims.csv")]
    present = {path.parent.name for path in parts}
    names = [*(n for n in STUDIES if n in present), *sorted(present - STUDIES.keys())]
    studies = [
        {
            "name": name,
            "lead": STUDIES.get(name, ""),
            "tables": _tables(results / name),
            "verdicts": _verdicts(results / name),
        }
        for name in names
    ]
    # Figures and the demo also have records; the records of studies come first.
    others = {path.parent.name for path in results.glob("*/records")} - {*names}
    records = [results / name / "records" for name in [*names, *sorted(others)]]
    runs, curves = _runs([*(folder for folder in records if folder.is_dir()), *folders])
    loader = PackageLoader("phaseavg.report")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    html = template.get_template("page.html.j2").render(
        studies=studies,
        figures=_figures(results),
        runs=runs.to_dict("records"),
        columns=list(COLUMNS.values()),
        curves=curves,
        metrics=CURVES,
    )
    files = {results / "index.html": html, results / "page/plotly.min.js": get_plotlyjs()}
    (results / "page").mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        write_atomically(path, text.encode(), f"--results={results}")
    return list(files)
