"""All results as one page that opens from disk: tables, verdicts, figures, runs, curves.

It is put together from what `make tables`, `make figures` and runs have written; nothing is
computed anew.
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
from phaseavg.report.claims_page import read_verdicts, summary_of
from phaseavg.report.figures import title_of
from phaseavg.runs.files import write_atomically
from phaseavg.runs.records import load_runs

STUDIES = {
    "full": "At the paper's full size: its data sets, networks and 160 epochs.",
    "cifar100-mini": "In miniature: 5,000 images of CIFAR-100 to train on and all 10,000 to test "
    "on, the 13-layer network at an eighth of its width, every phase a fifth as long.",
}
"""What lies in the folders of results; any other with tables or verdicts is shown after them."""

CURVES = {
    "weights.error": "Test error (%) of the optimizer's weights",
    "bn.error": "Test error (%) after a BatchNorm pass",
    "average.error": "Test error (%) of the average",
    "train.error": "Training error (%)",
    "train.loss": "Training loss",
}
"""What the page draws, by column of `load_runs`."""

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
"""Of the list of runs, by column of `load_runs`."""


def _tables(folder: Path) -> list[Markup]:
    """Return the bodies of a study's tables, as `make tables` has written them."""
    texts = [path.read_text() for path in sorted((folder / "tables").glob("*.html"))]
    bodies = [text.partition("<body>")[2].partition("</body>")[0] for text in texts]
    # Their own heading becomes one of the page; the template has escaped what is in them.
    return [Markup(re.sub(r"(</?)h1>", r"\1h4>", body)) for body in bodies]  # noqa: S704


def _verdicts(folder: Path) -> Markup:
    """Return a study's verdicts, as `make tables` has written them; nothing if it has not."""
    path = folder / "claims.csv"
    if not path.exists():
        return Markup()
    found = summary_of(read_verdicts(path))
    return Markup(found.to_html(index=False, border=0))  # noqa: S704 -- pandas escapes


def _figures(results: Path) -> list[dict[str, str]]:
    """Return the figures that have been drawn: title, picture, numbers."""
    pictures = sorted(results.glob("figures/**/*.svg"))
    return [
        {
            "title": title_of(path.stem),
            "src": path.relative_to(results).as_posix(),
            "numbers": path.with_suffix(".csv").relative_to(results).as_posix(),
            "caption": f"../docs/figures.md#{path.stem.partition('-')[0]}",
        }
        for path in pictures
    ]


def _runs(folders: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the ended runs in folders with `COLUMNS`, and the points of their curves by run."""
    runs, metrics = load_runs(*folders)
    runs = runs.drop_duplicates("run_id")
    runs["place"] = [path.parent.as_posix() for path in runs["path"]]
    runs["command"] = "python train.py " + runs["overrides"].astype(str)
    metrics = metrics[metrics["path"].isin(runs["path"])].drop_duplicates(["path", "epoch"])
    curves = {
        run_id: {
            "epoch": points["epoch"].tolist(),
            # JSON has no NaN; five digits are more than a line on a screen can show.
            **{
                name: [None if pd.isna(y) else float(f"{y:.5g}") for y in points[name]]
                for name in CURVES
                if name in points
            },
        }
        for run_id, points in metrics.groupby("run_id")
    }
    shown = runs.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS)
    return shown, curves


def write_page(results: Path, folders: Sequence[Path]) -> list[Path]:
    """Write `index.html`, and plotly's script beside it; return both.

    Args:
        results: the folder of all results.
        folders: of other runs that it shows.

    Raises:
        UserError: if a folder is missing, or the page cannot be written.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--runs={folder}: there is no such folder")
    written = [*results.glob("*/tables"), *results.glob("*/claims.csv")]
    found = {path.parent.name for path in written}
    names = [*(n for n in STUDIES if n in found), *sorted(found - STUDIES.keys())]
    studies = [
        {
            "name": name,
            "lead": STUDIES.get(name, ""),
            "tables": _tables(results / name),
            "verdicts": _verdicts(results / name),
        }
        for name in names
    ]
    # Figures and the demo have records, too; the studies' come first.
    others = {path.parent.name for path in results.glob("*/records")} - {*names}
    places = [results / name / "records" for name in [*names, *sorted(others)]]
    runs, curves = _runs([*(place for place in places if place.is_dir()), *folders])
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
