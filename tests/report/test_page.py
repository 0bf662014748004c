"""The results page shows existing results, escapes them, and opens from disk in a browser."""

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_core_python.sync_playwright import Axe
from conftest import TINY, Compose
from made_records import change_result, make_record, metrics_line
from playwright.sync_api import Browser, Page, sync_playwright

from phaseavg.report.page import write_page

CHROMIUM = shutil.which("chromium")

NASTY = "<script>alert(1)</script>"
"""An override of a run; a run id cannot contain this."""

VERDICTS = """\
claim,text,part,verdict,mean,low,high,margin,seeds,cells,all_cells,counted,below
C1,better & <faster>,,open,-0.5,-1.25,0.25,0.0,3,2,4,1 of 2,1 of 2
C1,better & <faster>,a part,holds,-0.75,-1.0,-0.5,0.0,3,1,2,,
"""

TABLE = "<body>\n<h1>Table 1b</h1><table><tr><td>31.00 ± 0.71 (2)</td></tr></table></body>"


def text_of(markup: str) -> str:
    """Return the visible text of HTML."""
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", markup)))


@pytest.fixture
def results(tmp_path: Path, compose_settings: Compose) -> Path:
    """Return a folder with a table, verdicts, a figure and four runs: two intact, one damaged, and
    one that diverged in its first epoch.
    """
    folder = tmp_path / "results"
    (folder / "full/tables").mkdir(parents=True)
    (folder / "full/tables/t1b.html").write_text(TABLE)
    (folder / "full/claims.csv").write_text(VERDICTS)
    (folder / "figures/tenth").mkdir(parents=True)
    (folder / "figures/tenth/fig5-cifar100-cnn13.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg' width='900' height='90'/>"
    )
    runs = (("full", [50.0, 40.0, 30.5]), ("figures", [50.0, None, 9.25]), ("full", [1.0]))
    for seed, (study, errors) in enumerate(runs):
        lines = [metrics_line(epoch, error) for epoch, error in enumerate(errors, start=1)]
        lines[-1] = metrics_line(len(errors), errors[-1], 9.0, errors[-1] - 1, replaced=True)
        settings = compose_settings(*TINY, f"seed={seed}")
        where = folder / study / "records" / settings.run_id
        make_record(settings, errors[-1] - 1, where=where, metrics=lines)
        if seed == 1:
            change_result(where, overrides=[f"model={NASTY}"])
        if seed == 2:
            (where / "result.json").write_text("{")
    diverged = compose_settings(*TINY, "seed=3")
    make_record(diverged, None, where=folder / "full/records" / diverged.run_id, metrics=[])
    return folder


def test_the_page_shows_all_results(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, script = write_page(results, [])
    markup = index.read_text()
    text = text_of(markup)
    assert "<h4>Table 1b</h4>" in markup
    assert "31.00 ± 0.71 (2)" in text
    assert "C1 better & <faster> open −0.500 [−1.250, +0.250] 3 2 of 4 1 of 2 1 of 2" in text
    assert "a part" not in text
    assert '<img src="figures/tenth/fig5-cifar100-cnn13.svg"' in markup
    assert "Learnt weights of the first phase: cifar100-cnn13 (tenth)" in text
    assert 'href="../docs/figures.md#fig5"' in markup
    assert "3 runs." in text
    assert "None" not in text
    assert re.findall(r'<h2 id="([^"]+)', markup) == ["full", "figures", "all-runs", "curves"]
    assert "damaged" in capsys.readouterr().err
    assert f"python train.py 'model={NASTY}'" in text
    assert NASTY not in markup
    assert script.stat().st_size > 1e6
    write_page(results, [results / "full/records"])
    assert index.read_text() == markup  # a run is shown once


def test_a_run_repeated_in_another_precision_has_a_row_of_its_own(
    results: Path, tmp_path: Path, compose_settings: Compose
) -> None:
    again = compose_settings(*TINY, "seed=0", f"runs_dir={tmp_path}/again")
    make_record(again, 11.25, precision="bf16")
    index, _ = write_page(results, [tmp_path / "again"])
    text = text_of(index.read_text())
    assert "4 runs." in text
    assert text.count(f"{again.run_id} ") == 2
    assert " 11.25 " in text


def test_without_results_the_page_shows_the_commands(tmp_path: Path) -> None:
    index, _ = write_page(tmp_path / "new", [])
    text = text_of(index.read_text())
    assert "No figures yet: make figures" in text
    assert "None yet. make demo trains eight" in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium to open the page in")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=0
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, results: Path) -> Iterator[Page]:
    """Open the page; afterwards check that it requested only files and logged no errors."""
    index, _ = write_page(results, [])
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    page.set_default_timeout(0)  # each test has a time limit
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url))
    page.goto(index.as_uri())
    page.locator("#plot .main-svg").first.wait_for()
    yield page
    page.close()
    assert complaints == []


@pytest.mark.slow
def test_ticked_runs_are_plotted_and_the_list_can_be_sorted(opened: Page) -> None:
    drawn = "document.getElementById('plot').data.map(({ x, y }) => [x, y])"
    assert opened.evaluate(drawn) == []
    for box in opened.get_by_role("checkbox").all():
        box.check()
    opened.wait_for_function(f"{drawn}.length === 3")
    curves = [[[1, 2, 3], [50, 40, 30.5]], [[], []], [[1, 2, 3], [50, None, 9.25]]]
    assert opened.evaluate(drawn) == curves
    opened.locator("#metric").select_option("train.loss")
    opened.wait_for_function(
        "document.getElementById('plot').layout.yaxis.title.text === 'Training loss'"
    )

    heading = opened.get_by_role("button", name="test error (%)")
    orders = []
    for _ in range(2):
        heading.click()
        orders.append(opened.locator("#runs tbody tr td:nth-child(5)").all_inner_texts())
    assert orders == [["", "8.25", "29.50"], ["29.50", "8.25", ""]]  # of the averages


@pytest.mark.slow
def test_the_page_is_accessible_and_fits(opened: Page) -> None:
    for width in (1280, 390):
        opened.set_viewport_size({"width": width, "height": 844})
        found = Axe().run(opened)
        assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in found["violations"]] == []
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
