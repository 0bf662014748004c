"""Build a W&B workspace of tables: curves and errors by cell, and the paper's errors.

All panels of a workspace show the same runs. W&B groups them by the config key `cells.<table>`;
runs of other tables form a single unnamed group.
"""

import unicodedata
from collections.abc import Sequence

import pandas as pd
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.expr import And

from phaseavg.report.study import Study, summarise
from phaseavg.report.tables import grid, grid_as_markdown, table_notes
from phaseavg.sweep.cells import table_title

CURVES = {
    "weights/error": "Test error (%)",
    "average/error": "Test error of the average (%)",
    "train/loss": "Training loss",
}
"""The metrics plotted over the epochs, with their titles."""

ENDS = {
    "test_error": "Test error at the end of training (%)",
    "best_test_error": "Test error of the best epoch (%)",
}
"""The metrics shown as bars, with their titles."""


def workspace(study: Study, entity: str, project: str) -> ws.Workspace:
    """Return the workspace of a study, with a section per table, without saving it.

    Args:
        study: from `read_study`.
        entity: the W&B account or team.
        project: the W&B project.
    """
    cells, run_ids = summarise(study), sorted(study.runs)
    sections = []
    for name, table in study.request.tables.items():
        own, rows = (frame[frame["table"] == name] for frame in (cells, study.rows))
        comparison = wr.MarkdownPanel(markdown=comparison_panel(study, name, own, rows))
        panels = [comparison, *make_panels(name, len(own), len(run_ids))]
        sections.append(
            ws.Section(name=f"{table_title(name)}: {table.title}", panels=panels, is_open=True)
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
    """Return a workspace's name: its tables, and the settings that differ from the paper's."""
    names = ", ".join(table_title(table).removeprefix("Table ") for table in study.request.tables)
    tables = f"{'Table' if len(study.request.tables) == 1 else 'Tables'} {names}"
    text = ". ".join(filter(None, (tables, study.remark)))
    # W&B treats every symbol, even the equals sign, as an emoji and rejects it.
    return "".join(" " if unicodedata.category(char)[0] == "S" else char for char in text)


def make_panels(table: str, cells: int, runs: int) -> Sequence[wr.LinePlot | wr.BarPlot]:
    """Return line and bar plots of each cell's mean and standard deviation over the seeds.

    Args:
        table: the table's id.
        cells: the number of cells in the table.
        runs: the number of runs in the workspace.
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


def comparison_panel(study: Study, name: str, cells: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Return a table of our errors and the paper's as Markdown.

    Args:
        study: from `read_study`.
        name: the table's name.
        cells: the table's cells, from `summarise`.
        rows: the table's rows, from `read_cells`.
    """
    words = [f"Test error (%), mean ± sample deviation (n seeds). {study.remark}".strip()]
    lines = grid_as_markdown(grid(cells))
    notes = [f"* {note}" for note in table_notes(cells, rows)]
    grouped = f"Panels are grouped by `cells.{name}`; runs trained without this table have none."
    return "\n".join([*words, "", lines or "No cell.", "", *notes, f"* {grouped}"])
