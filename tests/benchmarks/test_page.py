"""The pages are what the records say, and nothing else."""

import json
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import common, page
from phaseavg.errors import UserError
from phaseavg.report.marks import between_marks


@pytest.fixture
def results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    """Return the record of one benchmark, with two outcomes, read back."""
    goals = [
        common.Goal("ours", "theirs", "2 (1–3) times", "at least 1", met=True),
        common.Goal("ours", "others", "0.5 (0.4–0.6) times", "at least 1", met=False),
        common.Goal("ours", "nobody", "7"),
    ]
    rounds = {"all": pd.DataFrame({"ours": [1.0, 2.0]})}
    tables = {"Seconds:": [{"": "ours", "seconds": "1.5 (1–2)"}]}
    output = tmp_path / "new" / "input.json"
    common.report("input", output, common.CPU, "As it is.", goals, tables, rounds, {"peer": "3"})
    assert "1.5 (1–2)" in capsys.readouterr().out
    return page.read_results(output.parent)


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_pages_of_this_repository_are_made_of_its_records() -> None:
    results = page.read_results()
    readme = page.README.read_text()
    assert page.PAGE.read_text() == page.benchmarks_page(results)
    assert readme == between_marks(readme, "benchmarks", page.summary(results))


def test_a_record_has_date_machine_and_every_round(results: dict[str, dict]) -> None:
    record = results["input"]
    assert record["rounds"] == {"all": [{"ours": 1.0}, {"ours": 2.0}]}
    assert pd.Timestamp(record["date"]).date() <= pd.Timestamp.now("UTC").date()
    assert {"torch", "python", "peer"} <= record["machine"]["versions"].keys()
    text = page.section(record)
    assert f"- measured: {record['date']}" in text
    assert "peer 3" in text


def test_the_summary_has_a_row_for_each_outcome_and_says_what_was_not_measured(
    results: dict[str, dict],
) -> None:
    head, _, *rows = cells(page.summary(results))
    assert head == page.COLUMNS
    assert rows[:3] == [
        ["ours", "theirs", "2 (1–3) times", "at least 1", "met"],
        ["ours", "others", "0.5 (0.4–0.6) times", "at least 1", "not met"],
        ["ours", "nobody", "7", "", ""],
    ]
    missing = [title for name, title in page.TITLES.items() if name != "input"]
    assert rows[3:] == [[title, "", "not measured", "", ""] for title in missing]


def test_the_page_has_a_section_for_each_benchmark(results: dict[str, dict]) -> None:
    sections = page.benchmarks_page(results).split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == list(page.TITLES.values())
    assert ["Not measured" in section for section in sections] == [False] + [True] * (
        len(page.TITLES) - 1
    )
    assert ["ours", "1.5 (1–2)"] in cells(sections[0])


def test_the_table_of_readme_is_made_anew_and_the_rest_left_alone(
    results: dict[str, dict],
) -> None:
    begin, end = "<!-- benchmarks -->", "<!-- /benchmarks -->"
    text = f"Before\n{begin}\nold\n{end}\nafter\n"
    made = between_marks(text, "benchmarks", page.summary(results))
    assert made == f"Before\n{begin}\n\n{page.summary(results)}\n\n{end}\nafter\n"
    assert between_marks(made, "benchmarks", page.summary(results)) == made
    with pytest.raises(UserError, match="once"):
        between_marks(text + text, "benchmarks", "")
    with pytest.raises(UserError, match="once"):
        between_marks("no marks", "benchmarks", "")


def test_main_writes_both_pages(
    results: dict[str, dict], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readme, own = tmp_path / "README.md", tmp_path / "OWN.md"
    readme.write_text("<!-- benchmarks --><!-- /benchmarks -->\n")
    monkeypatch.setattr(page, "README", readme)
    monkeypatch.setattr(page, "PAGE", own)
    monkeypatch.setattr(page, "read_results", lambda: results)
    assert page.main() == 0
    assert page.summary(results) in readme.read_text()
    assert own.read_text() == page.benchmarks_page(results)
    readme.write_text("no marks")
    assert page.main() == 2


def test_every_title_is_a_benchmark_and_every_record_has_a_title() -> None:
    scripts = {path.stem for path in page.HERE.glob("*.py")}
    assert {name.partition("-")[0] for name in page.TITLES} <= scripts
    recorded = {path.stem for path in page.RESULTS.glob("*.json")}
    assert recorded <= page.TITLES.keys()
    for path in page.RESULTS.glob("*.json"):
        assert json.loads(path.read_text())["rounds"]
