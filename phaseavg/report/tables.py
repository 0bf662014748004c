"""The tables in the paper's shape: ours, the paper's, the difference, from records."""

import html
import re
import string
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler

from phaseavg.report.cells import CELL, key_of, summarised
from phaseavg.report.statistics import signed, spread, with_interval
from phaseavg.report.study import Study
from phaseavg.runs.files import write_atomically
from phaseavg.sweep.cells import title_of

DIFFERENCE = "paired difference"

CAPTION = "Test error (%) at the end of training, mean ± sample deviation (n seeds)."

ROW = ["data set", "network", "error (%)"]
"""The row index of a table."""

TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"±": r"$\pm$", "−": r"$-$", "γ": r"$\gamma$", "×": r"$\times$", "<": "$<$", ">": "$>$"}
    | {"~": r"\textasciitilde{}", "\\": r"\textbackslash{}", "^": r"\textasciicircum{}"}
)


def as_tex(text: str) -> str:
    """Return text as LaTeX has it."""
    return text.translate(TEX)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body>
<h1>{title}</h1>
<div class="scroll">
{table}
</div>
{notes}
</body>
</html>
"""

STYLES = [
    {"selector": "", "props": "border-collapse: collapse; font: 14px/1.5 system-ui, sans-serif"},
    {"selector": "caption", "props": "text-align: left; padding-bottom: .75rem"},
    {"selector": "th, td", "props": "padding: .25rem .5rem; white-space: nowrap"},
    {"selector": "th", "props": "text-align: left; vertical-align: top"},
    {"selector": "td.ours", "props": "font-weight: 600"},
    {"selector": "td, th.col_heading", "props": "text-align: right"},
    {"selector": "tbody tr:has(th.level1) > *", "props": "border-top: 1px solid #b8bec8"},
]


def as_markdown(frame: pd.DataFrame) -> str:
    """Return a frame of texts as a Markdown table; nothing of an empty one."""
    if frame.empty:
        return ""
    escaped = frame.astype(str).map(_escaped).rename(columns=_escaped)
    return escaped.to_markdown(index=False, disable_numparse=True)


def _escaped(text: str) -> str:
    """Return text as Markdown has it, in which there may be HTML and tables."""
    return html.escape(text, quote=False).replace("|", r"\|")


def cells_of_study(study: Study) -> pd.DataFrame:
    """Return a row per cell: what `summarised` has, and `averaged`, whether its runs average."""
    baseline = {name: table.baseline for name, table in study.request.tables.items()}
    cells = summarised(study.request.cells, study.rows, study.paper, baseline)
    averaged = {
        key_of(cell): not run.prefixes.averages_nothing
        for run in study.runs.values()
        for cell in run.cells
    }
    cells["averaged"] = [averaged[key] for key in cells[CELL].itertuples(index=False, name=None)]
    return cells


def letters_of(cells: pd.DataFrame) -> dict[str, str]:
    """Return a letter for each execution of a table's runs; none if they have but one."""
    executions = sorted({execution for made in cells["executions"] for execution in made})
    names = [*string.ascii_lowercase, *(f"{n}," for n in range(27, 27 + len(executions)))]
    return dict(zip(executions, names, strict=False)) if len(executions) > 1 else {}


def _ours(cell: pd.Series, letters: dict[str, str]) -> str:
    """Return our number of a cell, with n, letters of its executions, and runs that diverged."""
    marks = "".join(letters[execution] for execution in cell["executions"]) if letters else ""
    parts = [str(cell["n"])] if cell["n"] else []
    parts += [f"{cell['diverged']} diverged"] if cell["diverged"] else []
    counts = f" ({', '.join(parts)})" if parts else ""
    return (spread(cell["error_mean"], cell["error_std"]) + counts).strip() + (
        f" [{marks}]" if marks else ""
    )


def _difference(cell: pd.Series) -> str:
    """Return the paired difference of a cell; with the number of pairs where they are fewer."""
    pairs = f" ({cell['paired_n']})" if 0 < cell["paired_n"] != cell["n"] else ""
    return with_interval(cell["paired_mean"], cell["paired_low"], cell["paired_high"]) + pairs


def grid(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a table as texts: rows by `ROW`, a column per column of the table.

    Each network has the lines ours, the paper's and the difference; where nothing is averaged, ours
    also after a BatchNorm pass; where columns are compared with others, these differences.

    Args:
        cells: of one table, from `cells_of_study`.
    """
    letters, lines = letters_of(cells), {}
    for network, row in cells.groupby(["dataset", "model"], sort=False):
        own = row.set_index("column")
        kinds: dict[str, Any] = {"ours": own.apply(_ours, axis=1, letters=letters)}
        passed = own[~own["averaged"].astype(bool)]
        kinds["after a BN pass"] = passed.apply(
            lambda cell: spread(cell["bn_error_mean"], cell["bn_error_std"]), axis=1
        )
        kinds[DIFFERENCE] = own.apply(_difference, axis=1)
        kinds["paper"] = own.apply(
            lambda cell: spread(cell["paper_mean"], cell["paper_std"]), axis=1
        )
        kinds["difference to paper"] = own["difference"].map(signed)
        published = own["paper_mean"].notna().any()
        shown = {"ours": True, "paper": published, "difference to paper": published}
        for kind, texts in kinds.items():
            if shown.get(kind, any(texts.astype(str))):
                lines[*network, kind] = texts
    frame = pd.DataFrame(lines).T.reindex(columns=list(dict.fromkeys(cells["column"]))).fillna("")
    return frame.rename_axis(index=ROW, columns=None)


def grid_as_markdown(table: pd.DataFrame) -> str:
    """Return a table, from `grid`, as Markdown; a network is named in its first line."""
    flat = table.reset_index().rename(columns={ROW[2]: ""})
    repeated = flat.duplicated(ROW[:2])
    flat.loc[repeated, ROW[:2]] = ""
    return as_markdown(flat)


def notes_of(cells: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """Return the notes below a table.

    Args:
        cells: of the table, from `cells_of_study`.
        rows: of the table, from `read_cells`.
    """
    filled = int((cells["n"] > 0).sum())
    notes = [f"{filled} of {len(cells)} cells have runs."]
    compared = cells[cells["paired_n"] > 0].drop_duplicates("column")
    if len(compared):
        pairs = [
            f"{c} − {a}" for c, a in zip(compared["column"], compared["baseline"], strict=True)
        ]
        notes.append(
            f"{DIFFERENCE}: {', '.join(pairs)}; the mean over the seeds that both have with the "
            "same execution, with its 95 % t interval from two seeds on; (n) where they are fewer."
        )
    borrowed = rows[rows["before_averaging"].astype(bool)]
    for column, found in borrowed.groupby("column", sort=False):
        notes.append(
            f"{column}: {len(found)} of its errors are from runs of the same trajectory, before an "
            "average replaced their weights."
        )
    letters = letters_of(cells)
    if letters:
        listed = "; ".join(f"[{letter.strip(',')}] {what}" for what, letter in letters.items())
        notes.append(f"Executions are mixed, and differences with them: {listed}.")
    elif filled:
        notes.append(f"All runs: {rows['execution'].iloc[0]}.")
    modified = rows.loc[rows["modified"].str.contains("True"), "run_id"].nunique()
    if modified:
        notes.append(f"{modified} of the runs were made with code that was not committed.")
    return notes


def write_tables(study: Study, output: Path) -> list[Path]:
    """Write each table of a study as Markdown, CSV, LaTeX and HTML; return the files."""
    cells, written = cells_of_study(study), []
    output.mkdir(parents=True, exist_ok=True)
    for name, table in study.request.tables.items():
        title = ". ".join(filter(None, (f"{title_of(name)}: {table.title}", study.remark)))
        own, rows = (frame[frame["table"] == name] for frame in (cells, study.rows))
        for kind, text in rendered(name, title, own, rows).items():
            written.append(output / f"{name}.{kind}")
            write_atomically(written[-1], text.encode(), f"--output={output}")
    return written


def rendered(name: str, title: str, cells: pd.DataFrame, rows: pd.DataFrame) -> dict[str, str]:
    """Return a table by format.

    Args:
        name: of the table.
        title: its number, what it compares, and settings other than the paper's.
        cells: of the table, from `cells_of_study`.
        rows: of the table, from `read_cells`.
    """
    table, notes = grid(cells), notes_of(cells, rows)
    runs = [
        f"- {_escaped(' '.join(map(str, cell[CELL[1:]])))}: "
        + ", ".join(f"`{run_id}`" for run_id in cell["run_ids"])
        for _, cell in cells.iterrows()
        if cell["run_ids"]
    ]
    details = ["<details><summary>Runs of each cell</summary>", "\n".join(runs), "</details>"]
    parts = [f"# {_escaped(title)}", CAPTION, grid_as_markdown(table), *notes]
    style = table.style.format(as_tex).format_index(as_tex).format_index(as_tex, axis=1)
    latex = style.hide(axis="index", names=True).to_latex(
        hrules=True,
        column_format="lll" + "r" * table.shape[1],
        clines="skip-last;data",
        caption=as_tex(f"{title}. {CAPTION}"),
        label=f"tab:{name}",
    )
    latex = re.sub(r"(\\cline\{[\d-]+\} ?)+\n(?=\\bottomrule)", "", latex)  # two rules would meet
    latex = "\n".join([latex, *(rf"\noindent {as_tex(note)}\par" for note in notes), ""])
    style = Styler(table, cell_ids=False, uuid=name).format(escape="html")
    style = style.format_index(escape="html").format_index(escape="html", axis=1)
    ours = table.index.get_level_values(ROW[2]) == "ours"
    classes = pd.DataFrame("", table.index, table.columns)
    classes.loc[ours] = "ours"
    style = style.set_td_classes(classes).set_caption(CAPTION).set_table_styles(STYLES)
    page = PAGE.format(
        title=html.escape(title),
        table=style.to_html(),
        notes="\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
    )
    return {
        "md": "\n\n".join([*parts, *(details if runs else [])]) + "\n",
        "csv": as_csv(cells),
        "tex": latex,
        "html": page,
    }


def as_csv(cells: pd.DataFrame) -> str:
    """Return a line per cell, with all its numbers unrounded but for noise."""
    flat = cells.drop(columns="averaged")
    for column, mark in (("executions", "; "), ("run_ids", " ")):
        flat[column] = [mark.join(items) for items in flat[column]]
    return flat.round(4).to_csv(index=False, lineterminator="\n")
