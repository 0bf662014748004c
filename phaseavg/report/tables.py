"""The tables in the paper's shape: ours, the paper's, the difference, from records."""

import html
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from phaseavg.report.cells import CELL
from phaseavg.report.statistics import signed, spread, with_interval
from phaseavg.runs.files import write_atomically
from phaseavg.sweep.cells import title_of

DIFFERENCE = "paired difference"

CAPTION = "Test error (%) at the end of training, mean ± sample deviation (n seeds)."

FORMATS = ("md", "csv", "tex", "html")

TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"±": r"$\pm$", "−": r"$-$", "γ": r"$\gamma$", "~": r"\textasciitilde{}"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "×": r"$\times$"},
    **{"<": "$<$", ">": "$>$"},
}


def as_tex(text: str) -> str:
    """Return text as LaTeX has it."""
    return "".join(TEX.get(character, character) for character in text)


IN_TEX = {  # braces and percent signs are LaTeX's own
    **{"variable_start_string": "<<", "variable_end_string": ">>"},
    **{"block_start_string": "<%", "block_end_string": "%>"},
    **{"comment_start_string": "<#", "comment_end_string": "#>"},
}


def environment(kind: str) -> Environment:
    """Return what renders the templates; names and config values are escaped in HTML."""
    made = Environment(
        **(IN_TEX if kind == "tex" else {}),
        loader=PackageLoader("phaseavg.report"),
        autoescape=kind == "html",  # noqa: S701 -- the others are no HTML
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters |= {"tex": as_tex, "md": as_md}
    return made


def as_md(text: str) -> str:
    """Return text as Markdown has it, in which there may be HTML and tables."""
    return html.escape(text, quote=False).replace("|", r"\|")


def as_markdown(frame: pd.DataFrame) -> str:
    """Return a frame of texts as a Markdown table; nothing of an empty one."""
    if frame.empty:
        return ""
    escaped = frame.astype(str).map(as_md).rename(columns=as_md)
    return escaped.to_markdown(index=False, disable_numparse=True)


def _ours(cell: pd.Series, letters: dict[str, str]) -> str:
    """Return our number of a cell, with n, letters of its executions, and runs that diverged."""
    marks = "".join(letters[execution] for execution in cell["executions"]) if letters else ""
    parts = [str(cell["n"])] if cell["n"] else []
    parts += [f"{cell['diverged']} diverged"] if cell["diverged"] else []
    counts = f" ({', '.join(parts)})" if parts else ""
    return (spread(cell["error_mean"], cell["error_std"]) + counts).strip() + (
        f" [{marks}]" if marks else ""
    )


def letters_of(cells: pd.DataFrame) -> dict[str, str]:
    """Return a letter for each execution of a table's runs; none if they have but one."""
    executions = sorted({execution for made in cells["executions"] for execution in made})
    names = [*string.ascii_lowercase, *(f"{n}," for n in range(27, 27 + len(executions)))]
    return dict(zip(executions, names, strict=False)) if len(executions) > 1 else {}


def grid(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the lines of a table: of each network ours, the paper's and the difference.

    Where nothing is averaged, ours has a second line with the errors after a BatchNorm pass; where
    columns are compared with others, there is one with these differences.

    Args:
        cells: of one table, from `summarised`.
    """
    letters = letters_of(cells)
    lines = []
    for (dataset, model), row in cells.groupby(["dataset", "model"], sort=False):
        kinds = {"ours": [_ours(cell, letters) for _, cell in row.iterrows()]}
        passed = [
            "" if cell["averaged"] else spread(cell["bn_error_mean"], cell["bn_error_std"])
            for _, cell in row.iterrows()
        ]
        if any(passed):
            kinds["after a BN pass"] = passed
        if row["paired_mean"].notna().any():
            kinds[DIFFERENCE] = [
                with_interval(cell["paired_mean"], cell["paired_low"], cell["paired_high"])
                + (f" ({cell['paired_n']})" if 0 < cell["paired_n"] != cell["n"] else "")
                for _, cell in row.iterrows()
            ]
        if row["paper_mean"].notna().any():
            kinds["paper"] = [
                spread(m, s) for m, s in zip(row["paper_mean"], row["paper_std"], strict=True)
            ]
            kinds["difference to paper"] = [signed(value) for value in row["difference"]]
        for number, (label, texts) in enumerate(kinds.items()):
            lines.append(
                {
                    "dataset": dataset if number == 0 else "",
                    "model": model if number == 0 else "",
                    "label": label,
                    "texts": texts,
                    "kind": label.split()[0],
                    "first": number == 0,
                }
            )
    return lines


def grid_as_markdown(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return the lines of a table, from `grid`, under the ids of its columns, as Markdown."""
    frame = pd.DataFrame(
        [[line["dataset"], line["model"], line["label"], *line["texts"]] for line in lines],
        columns=["data set", "network", "", *columns],
    )
    return as_markdown(frame)


def notes_of(cells: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """Return what has to be said below a table.

    Args:
        cells: of the table, from `summarised`.
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


def write_table(
    name: str, title: str, cells: pd.DataFrame, rows: pd.DataFrame, output: Path
) -> list[Path]:
    """Write a table as Markdown, CSV, LaTeX and HTML; return the files.

    Args:
        name: of the table, and of the files.
        title: what it compares, and settings other than the paper's.
        cells: of the table, from `summarised`, with a column `averaged`: whether the cell's runs
            average anything.
        rows: of the table, from `read_cells`.
        output: the folder.
    """
    columns = list(dict.fromkeys(cells["column"]))
    lines = grid(cells)
    values = {
        "title": f"{title_of(name)}: {title}",
        "caption": CAPTION,
        "columns": columns,
        "rows": lines,
        "notes": notes_of(cells, rows),
        "runs": [
            (" ".join(map(str, cell[CELL[1:]])), cell["run_ids"])
            for _, cell in cells.iterrows()
            if cell["run_ids"]
        ],
    }
    values["grid"] = grid_as_markdown(lines, columns)
    texts = {
        kind: environment(kind).get_template(f"table.{kind}.j2").render(values)
        for kind in FORMATS
        if kind != "csv"
    }
    texts["csv"] = as_csv(cells)
    output.mkdir(parents=True, exist_ok=True)
    for kind in FORMATS:
        write_atomically(output / f"{name}.{kind}", texts[kind].encode(), f"--output={output}")
    return [output / f"{name}.{kind}" for kind in FORMATS]


def as_csv(cells: pd.DataFrame) -> str:
    """Return a line per cell, with all its numbers unrounded but for noise."""
    flat = cells.drop(columns="averaged")
    for column, mark in (("executions", "; "), ("run_ids", " ")):
        flat[column] = [mark.join(items) for items in flat[column]]
    return flat.round(4).to_csv(index=False, lineterminator="\n")
