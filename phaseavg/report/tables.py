"""Write tables in the paper's layout from records: our errors, the paper's, the difference."""

import html
import re
from collections.abc import Iterator
from itertools import count, product
from pathlib import Path
from string import ascii_lowercase

import pandas as pd
from pandas.io.formats.style import Styler

from phaseavg.report.cells import CELL
from phaseavg.report.statistics import signed, spread, with_interval
from phaseavg.report.study import Study, summarise
from phaseavg.runs.files import write_atomically
from phaseavg.sweep.cells import study_name, table_title

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
    """Escape text for LaTeX."""
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
    """Return a frame of texts as a Markdown table; an empty frame gives an empty string."""
    if frame.empty:
        return ""
    escaped = frame.astype(str).map(_escaped).rename(columns=_escaped)
    return escaped.to_markdown(index=False, disable_numparse=True)


def _escaped(text: str) -> str:
    """Escape text for a Markdown table; Markdown may contain HTML."""
    return html.escape(text, quote=False).replace("|", r"\|")


def alphabet() -> Iterator[str]:
    """Yield a, b, …, z, aa, ab and so on."""
    for length in count(1):
        yield from map("".join, product(ascii_lowercase, repeat=length))


def execution_letters(cells: pd.DataFrame) -> dict[str, str]:
    """Return a letter for each execution of a table's runs; empty if all runs have the same."""
    executions = sorted(set().union(*cells["executions"]))
    return dict(zip(executions, alphabet(), strict=False)) if len(executions) > 1 else {}


def _ours(cell: pd.Series, letters: dict[str, str]) -> str:
    """Format our error of a cell, with n, the number of diverged runs, and execution letters."""
    counts = [str(cell["n"])] if cell["n"] else []
    counts += [f"{cell['diverged']} diverged"] if cell["diverged"] else []
    marks = "".join(letters.get(execution, "") for execution in cell["executions"])
    parts = [
        spread(cell["error_mean"], cell["error_std"]),
        f"({', '.join(counts)})" if counts else "",
        f"[{marks}]" if marks else "",
    ]
    return " ".join(filter(None, parts))


def _difference(cell: pd.Series) -> str:
    """Format the paired difference of a cell; with the number of pairs if it is below n."""
    pairs = f" ({cell['paired_n']})" if 0 < cell["paired_n"] != cell["n"] else ""
    return with_interval(cell["paired_mean"], cell["paired_low"], cell["paired_high"]) + pairs


def grid(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a table as texts, indexed by `ROW`, with the table's columns.

    Each network has rows for our error, the paper's error and the difference. Further rows show
    paired differences, and the error after a BatchNorm pass of runs without averaging.

    Args:
        cells: the cells of one table, from `summarise`.
    """
    letters, lines = execution_letters(cells), {}
    for network, row in cells.groupby(["dataset", "model"], sort=False):
        columns = row.set_index("column")
        passed = columns[~columns["averaged"]]
        lines[*network, "ours"] = columns.apply(_ours, axis=1, letters=letters)
        further = {
            "after a BN pass": passed.apply(_spread, axis=1, of="bn_error"),
            DIFFERENCE: columns.apply(_difference, axis=1),
        }
        lines |= {
            (*network, kind): texts for kind, texts in further.items() if any(texts.astype(str))
        }
        if columns["paper_mean"].notna().any():
            lines[*network, "paper"] = columns.apply(_spread, axis=1, of="paper")
            lines[*network, "difference to paper"] = columns["difference"].map(signed)
    frame = pd.DataFrame(lines).T.reindex(columns=list(dict.fromkeys(cells["column"]))).fillna("")
    return frame.rename_axis(index=ROW, columns=None)


def _spread(cell: pd.Series, of: str) -> str:
    return spread(cell[f"{of}_mean"], cell[f"{of}_std"])


def grid_as_markdown(table: pd.DataFrame) -> str:
    """Return a table from `grid` as Markdown; only a network's first row shows its name."""
    flat = table.reset_index().rename(columns={ROW[2]: ""})
    flat.loc[flat.duplicated(ROW[:2]), ROW[:2]] = ""
    return as_markdown(flat)


def table_notes(cells: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """Return the notes below a table.

    Args:
        cells: the table's cells, from `summarise`.
        rows: the table's rows, from `read_cells`.
    """
    filled = int((cells["n"] > 0).sum())
    notes = [f"{filled} of {len(cells)} cells have runs."]
    compared = cells[cells["paired_n"] > 0].drop_duplicates("column")
    if len(compared):
        pairs = ", ".join(compared["column"] + " − " + compared["baseline"])
        notes.append(
            f"{DIFFERENCE}: {pairs}; mean over the seeds that both have with the same execution; "
            "brackets: 95 % t interval, for two or more; (n): their number, if it differs from n."
        )
    borrowed = rows.loc[rows["before_averaging"].astype(bool), "column"]
    for column, number in borrowed.value_counts(sort=False).items():
        notes.append(
            f"{column}: {number} of its errors are from runs of the same trajectory, before an "
            "average replaced their weights."
        )
    letters = execution_letters(cells)
    if letters:
        listed = "; ".join(f"[{letter}] {what}" for what, letter in letters.items())
        notes.append(f"Executions differ (paired differences are of equal ones): {listed}.")
    elif filled:
        notes.append(f"All runs: {rows['execution'].iloc[0]}.")
    modified = rows.loc[rows["modified"].str.contains("True"), "run_id"].nunique()
    if modified:
        notes.append(f"Runs made with uncommitted code: {modified}.")
    return notes


def write_tables(study: Study, output: Path) -> list[Path]:
    """Write each table of a study as Markdown, CSV, LaTeX and HTML; return the paths."""
    cells, paths = summarise(study), []
    output.mkdir(parents=True, exist_ok=True)
    for name, table in study.request.tables.items():
        title = ". ".join(filter(None, (f"{table_title(name)}: {table.title}", study.remark)))
        own, rows = (frame[frame["table"] == name] for frame in (cells, study.rows))
        texts, notes = grid(own), table_notes(own, rows)
        files = {
            "md": _markdown(title, texts, notes, own),
            "csv": _csv(own),
            "tex": _latex(name, title, texts, notes),
            "html": _html(f"{study_name(study.request.common)}_{name}", title, texts, notes),
        }
        for kind, text in files.items():
            paths.append(output / f"{name}.{kind}")
            write_atomically(paths[-1], text.encode(), f"--output={output}")
    return paths


def _markdown(title: str, table: pd.DataFrame, notes: list[str], cells: pd.DataFrame) -> str:
    parts = [f"# {_escaped(title)}", CAPTION, grid_as_markdown(table), *notes]
    runs = [
        f"- {_escaped(' '.join(map(str, cell[CELL[1:]])))}: "
        + ", ".join(f"`{run_id}`" for run_id in cell["run_ids"])
        for _, cell in cells.iterrows()
        if cell["run_ids"]
    ]
    if runs:
        parts += ["<details><summary>Runs of each cell</summary>", "\n".join(runs), "</details>"]
    return "\n\n".join(parts) + "\n"


def _latex(name: str, title: str, table: pd.DataFrame, notes: list[str]) -> str:
    style = table.style.format(as_tex).format_index(as_tex).format_index(as_tex, axis=1)
    latex = style.hide(axis="index", names=True).to_latex(
        hrules=True,
        column_format="lll" + "r" * table.shape[1],
        clines="skip-last;data",
        caption=as_tex(f"{title}. {CAPTION}"),
        label=f"tab:{name}",
    )
    latex = re.sub(r"(\\cline\{[\d-]+\} ?)+\n(?=\\bottomrule)", "", latex)  # avoid two rules
    return "\n".join([latex, *(rf"\noindent {as_tex(note)}\par" for note in notes), ""])


def _html(uuid: str, title: str, table: pd.DataFrame, notes: list[str]) -> str:
    style = Styler(table, cell_ids=False, uuid=uuid).format(escape="html")
    style = style.format_index(escape="html").format_index(escape="html", axis=1)
    classes = pd.DataFrame("", table.index, table.columns)
    classes.loc[table.index.get_level_values(ROW[2]) == "ours"] = "ours"
    style = style.set_td_classes(classes).set_caption(CAPTION).set_table_styles(STYLES)
    return PAGE.format(
        title=html.escape(title),
        table=style.to_html(),
        notes="\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
    )


def _csv(cells: pd.DataFrame) -> str:
    """Return a CSV line per cell, with all numbers rounded to four decimals."""
    flat = cells.drop(columns="averaged")
    for column, mark in (("executions", "; "), ("run_ids", " ")):
        flat[column] = flat[column].map(mark.join)
    return flat.round(4).to_csv(index=False, lineterminator="\n")
