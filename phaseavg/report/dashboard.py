"""A W&B workspace with the tables: curves and errors by cell, and ours beside the paper's.

In a workspace all panels have the same runs. What tells those of a table apart is the key of their
config that W&B groups by, `cells.<table>`: runs of the other tables are one group without a name.
"""

import unicodedata
from collections.abc import Sequence

import pandas as pd
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.expr import And

from phaseavg.report.study import Study, summarised
from phaseavg.report.tables import grid, grid_as_markdown, notes_of
from phaseavg.sweep.cells import title_of

CURVES = {
    "weights/error": "Test error (%)",
    "average/error": "Test error of the average (%)",
    "train/loss": "Training loss",
}
"""What is drawn over the epochs, with its title."""

ENDS = {
    "test_error": "Test error at the end of training (%)",
    "best_test_error": "Test error of the best epoch (%)",
}
"""What bars are drawn of, with its title."""


def workspace(study: Study, entity: str, project: str) -> ws.Workspace:
    """Return the workspace of a study, a section per table; it is not saved.

    Args:
        study: from `read_study`.
        entity: W&B's account or team.
        project: W&B's.
    """
    cells, run_ids = summarised(study), sorted(study.runs)
    sections = []
    for name, table in study.request.tables.items():
        own, rows = (frame[frame["table"] == name] for frame in (cells, study.rows))
        beside = wr.MarkdownPanel(markdown=beside_the_paper(study, name, own, rows))
        panels = [beside, *panels_of(name, len(own), len(run_ids))]
        sections.append(
            ws.Section(name=f"{title_of(name)}: {table.title}", panels=panels, is_open=True)
        )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=title(study),
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=len(run_ids)),
        runset_settings=ws.RunsetSettings(
            filters=And(ws.Metric("ID").isin(run_ids)),
            pinned_columns=[f"summary:{name}" for name in ENDS],
        ),
    )


def title(study: Study) -> str:
    """Return what a workspace is called: its tables, and what is other than the paper's."""
    names = ", ".join(title_of(table).removeprefix("Table ") for table in study.request.tables)
    called = f"{'Table' if len(study.request.tables) == 1 else 'Tables'} {names}"
    words = ". ".join(filter(None, (called, study.remark)))
    # W&B takes all symbols for emojis, the equals sign too, and refuses them.
    return "".join(" " if unicodedata.category(sign)[0] == "S" else sign for sign in words)


def panels_of(table: str, cells: int, runs: int) -> Sequence[wr.LinePlot | wr.BarPlot]:
    """Return curves over the epochs and bars, a mean and deviation over the seeds of each cell.

    Args:
        table: its id.
        cells: how many it has.
        runs: how many the workspace has.
    """
    by_cell = {
        "groupby": wr.Config(f"cells.{table}"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
        "max_runs_to_show": runs,
    }
    curves = [
        wr.LinePlot(title=words, x="epoch", y=[key], title_x="epoch", **by_cell)
        for key, words in CURVES.items()
    ]
    bars = [
        wr.BarPlot(
            title=words, metrics=[wr.SummaryMetric(key)], max_bars_to_show=cells + 1, **by_cell
        )
        for key, words in ENDS.items()
    ]
    return [*curves, *bars]


def beside_the_paper(study: Study, name: str, cells: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return a table as Markdown: our errors, where there are records, beside the paper's.

    Args:
        study: from `read_study`.
        name: of the table.
        cells: of the table, from `summarised`.
        rows: of the table, from `read_cells`.
    """
    words = [f"Test error (%), mean ± sample deviation (n seeds). {study.remark}".strip()]
    lines = grid_as_markdown(grid(cells))
    notes = [f"* {note}" for note in notes_of(cells, rows)]
    grouped = f"Panels are grouped by `cells.{name}`; runs of other tables have none."
    return "\n".join([*words, "", lines or "No cell.", "", *notes, f"* {grouped}"])
