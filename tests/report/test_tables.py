"""Tables from records, compared with hand-computed values and stored files."""

import html
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, Prompt, composed
from made_records import make_record, metrics_line

from phaseavg.report.cells import CELL, read_paper, read_records
from phaseavg.report.study import Study, read_study, summarise
from phaseavg.report.tables import as_tex, grid, table_notes, write_tables
from phaseavg.sweep.cells import Request, Run, Table, cell_runs, table_cells, unique_runs

EXPECTED = Path(__file__).parent / "expected"

TABLE = Table(
    title="what is compared, γ0 & <all>",
    rows=[["dataset=cifar100", "model=cnn13"], ["dataset=svhn", "model=resnet34"]],
    columns={
        "sgd": ["averaging=none"],
        "ours": ["averaging=phasewise"],
        "learnt": ["averaging=rna"],
    },
    baseline={"ours": "sgd", "learnt": "sgd"},
)

PAPER = pd.DataFrame(
    [
        ("t", "cifar100", "cnn13", "sgd", 26.52, 0.16),
        ("t", "cifar100", "cnn13", "ours", 26.05, 0.08),
        ("t", "svhn", "resnet34", "ours", 2.65, None),
    ],
    columns=[*CELL, "error_mean", "error_std"],
).set_index(CELL)


def study_of(table: Table, folder: Path) -> Study:
    """Return the cells of a table with the records of a folder."""
    folders = [f"runs_dir={folder}/runs", f"records_dir={folder}/records"]
    cells = table_cells("t", table, folders)
    runs = unique_runs(cell_runs(cells, {"t": [0, 1, 2]}, lambda overrides: composed(*overrides)))
    request = Request({"t": table}, cells, {"t": [0, 1, 2]})
    return Study(request, runs, *read_records([]), PAPER)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Return six cells without records."""
    return study_of(TABLE, tmp_path)


def runs_in(study: Study, dataset: str, column: str) -> list[Run]:
    return [
        run
        for run in study.runs.values()
        if (run.cells[0].dataset, run.cells[0].column) == (dataset, column)
    ]


def read(study: Study) -> None:
    """Reload the records of a study's runs."""
    study.records, study.metrics = read_records(study.runs.values())
    vars(study).pop("rows", None)


def fill(study: Study, mixed: bool = True) -> None:
    """Write records: three seeds; two, one diverged; one; all diverged."""
    sgd, ours, learnt = (runs_in(study, "cifar100", c) for c in ("sgd", "ours", "learnt"))
    for run, error in zip(sgd, (26.0, 27.0, 26.8), strict=True):
        make_record(run.settings, error, bn_test_error=error - 0.5)
    for run, error in zip(ours, (25.5, None, 26.5), strict=True):
        other = {"device_name": "another GPU"} if mixed and error == 26.5 else {}
        make_record(run.settings, error, **other)
    make_record(learnt[0].settings, None)
    run = runs_in(study, "svhn", "ours")[1]
    make_record(run.settings, 2.5, where=run.settings.records_dir / run.settings.run_id)
    read(study)


def summary(study: Study) -> pd.DataFrame:
    return summarise(study).set_index(["dataset", "column"])


def test_differences_are_paired_by_seed_and_execution(study: Study) -> None:
    fill(study, mixed=False)
    ours = summary(study).loc["cifar100", "ours"]
    assert ours["paired_n"] == 2  # seeds 0 and 2: −0.5 and −0.3; 1 has diverged
    assert ours["paired_mean"] == pytest.approx(-0.4)
    half = 12.7062 * 0.1  # t quantile for one degree of freedom, standard error
    assert ours["paired_low"] == pytest.approx(-0.4 - half, abs=1e-4)
    assert ours["paired_high"] == pytest.approx(-0.4 + half, abs=1e-4)


def keep_phases(run: Run, *phases: tuple[int, float, float, float | None]) -> None:
    """Write a record with phase ends: epoch, errors as trained, after a pass, of the average."""
    epoch, trained, passed, average = phases[-1]
    lines = {number: metrics_line(number) for number in range(1, epoch + 1)}
    for end, *errors in phases:
        lines[end] = metrics_line(end, *errors, replaced=errors[-1] is not None)
    make_record(
        run.settings, trained if average is None else average, passed, metrics=[*lines.values()]
    )


def test_errors_before_averaging_fill_cells_without_averaging(tmp_path: Path) -> None:
    """The trajectory is the same until an average replaces the weights."""
    table = Table(
        title="t",
        rows=[["dataset=cifar100", "model=cnn13"]],
        columns={
            "orig": ["schedule=constant-80", "averaging=none"],
            "ours": ["schedule=constant-80", "averaging=phasewise"],
            "sgd": ["averaging=none"],
            "end": ["averaging=end"],
            "phase-wise": ["averaging=phasewise"],
        },
        baseline={"ours": "orig"},
    )
    study = study_of(table, tmp_path)
    by_place = {(run.cells[0].column, run.settings.seed): run for run in study.runs.values()}
    keep_phases(by_place["ours", 0], (80, 34.0, 32.0, 24.0))
    keep_phases(by_place["phase-wise", 0], (80, 99.0, 99.0, 99.0), (160, 99.0, 99.0, 99.0))
    keep_phases(by_place["phase-wise", 1], (80, 35.0, 33.0, 24.0), (160, 25.0, 25.0, 24.5))
    keep_phases(by_place["end", 2], (80, 36.0, 34.0, None), (160, 26.0, 25.5, 25.0))
    keep_phases(by_place["ours", 2], (80, 40.0, 34.0, 24.5))
    keep_phases(by_place["orig", 2], (80, 36.5, 34.5, None))  # this record takes precedence
    read(study)
    by_column = {name: rows.set_index("seed") for name, rows in study.rows.groupby("column")}
    assert by_column["orig"]["test_error"].to_dict() == {0: 34.0, 1: 35.0, 2: 36.5}
    assert by_column["orig"]["bn_test_error"].to_dict() == {0: 32.0, 1: 33.0, 2: 34.5}
    assert by_column["orig"]["before_averaging"].to_dict() == {0: True, 1: True, 2: False}
    assert by_column["sgd"]["test_error"].to_dict() == {2: 26.0}
    assert by_column["sgd"]["method_seconds"].isna().all()  # not timed
    summary = summarise(study).set_index("column")
    assert summary["n"].to_dict() == {"orig": 3, "ours": 2, "sgd": 1, "end": 1, "phase-wise": 2}
    assert summary.loc["ours", "paired_mean"] == pytest.approx((-10.0 - 12.0) / 2)
    notes = " ".join(table_notes(summary.reset_index(), study.rows))
    assert "orig: 2 of its errors are from runs of the same trajectory" in notes


def without_hashes(text: str) -> str:
    """Replace recipe hashes, which change with the config."""
    return re.sub(r"-[0-9a-f]{10}\b", "-0123456789", text)


def test_the_files_match_the_stored_files(study: Study, tmp_path: Path) -> None:
    """The stored files are in tests/report/expected; check `git diff` after rewriting them."""
    fill(study)
    written = write_tables(study, tmp_path / "tables")
    assert [path.name for path in written] == ["t.md", "t.csv", "t.tex", "t.html"]
    for path in written[:2]:
        stored = EXPECTED / f"filled{path.suffix}"
        assert without_hashes(path.read_text()) == stored.read_text(), stored


def test_html_and_latex_contain_the_full_grid_escaped(study: Study, tmp_path: Path) -> None:
    fill(study)
    _, _, tex, page = (path.read_text() for path in write_tables(study, tmp_path))
    own = summarise(study)
    table = grid(own)
    shown = [html.unescape(text) for text in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    assert shown == [text or "" for text in table.to_numpy().ravel()]
    assert "γ0 &amp; &lt;all&gt;" in page
    for texts in table.values:
        for text in texts:
            assert as_tex(text) in tex
    for note in table_notes(own, study.rows):
        assert html.escape(note) in page
        assert as_tex(note) in tex
    assert r"what is compared, $\gamma$0 \& $<$all$>$" in tex


def test_escaping_for_latex() -> None:
    assert as_tex("γ0 ± 5 % of a_b & {c}\\") == (
        r"$\gamma$0 $\pm$ 5 \% of a\_b \& \{c\}\textbackslash{}"
    )


def test_the_script_writes_blanks_for_cells_without_runs(script: Prompt, tmp_path: Path) -> None:
    def written(place: str, *options: str) -> str:
        folder = f"runs_dir={tmp_path}/runs"
        selection = ("table=t1d", "model=cnn13", "hydra/launcher=local", folder)
        assert script("tables", *selection, *options)[0] == 0
        return (tmp_path / place / "tables/t1d.md").read_text()

    text = written("results/full")
    assert "0 of 8 cells have runs." in text  # all cells, despite the selection
    assert "26.74 ± 0.14" in text  # the folder is not part of the recipe
    typed = written("other", "--output", "other", "scale=full")
    assert "26.74 ± 0.14" in typed  # of the full size, whether typed or not
    tenth = written("results/tenth", "scale=tenth")
    assert tenth.splitlines()[0].endswith("With scale=tenth")
    assert "26.74" not in tenth  # another network


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["full", "tenth"])
def test_the_published_tables_are_those_of_the_published_records(
    script: Prompt, tmp_path: Path, scale: str
) -> None:
    (tmp_path / "results").symlink_to(REPOSITORY / "results")
    shown = {p.name: p.read_text() for p in (REPOSITORY / "results" / scale).glob("tables/*.md")}
    paper = read_paper().index.unique("table")
    for table in ("all", *({Path(name).stem for name in shown} - {*paper})):
        typed = [f"table={table}", *([] if scale == "full" else [f"scale={scale}"])]
        assert script("tables", *typed, "--output", "written")[0] == 0
    assert {p.name: p.read_text() for p in (tmp_path / "written/tables").glob("*.md")} == shown


def test_whole_tables_include_additional_seeds() -> None:
    typed = ["table=t1d", "model=cnn13", "seed=0,7", "+averaging@observers.swa=uniform"]
    study = read_study(typed, all_cells=True)
    assert study.request.seeds == {"t1d": [0, 1, 2, 7]}
    assert len(study.request.cells) == 8
    assert study.comparable.equals(study.paper)  # no other setting differs
