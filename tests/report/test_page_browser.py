"""The page in a browser: opened from disk, it draws what is chosen, and is accessible."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_core_python.sync_playwright import Axe
from made_page import NASTY
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page in")

WIDTHS = (1280, 390)

DRAWN = "[...document.getElementById('plot').data].map(trace => [trace.meta, trace.x, trace.y])"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=0
        )
        yield browser
        browser.close()


class Opened:
    """A page that was opened, and what it has asked for and complained of."""

    def __init__(self, browser: Browser, address: str, width: int) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": 844})
        self.page.set_default_timeout(0)  # of a single test there is a limit
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.wait_for(0)

    def wait_for(self, drawing: int) -> None:
        """Wait until more than so many drawings were made."""
        drawn = "Number(document.getElementById('plot').dataset.drawn)"
        while not self.page.evaluate(f"{drawn} > {drawing}"):  # Playwright's own waits need eval
            self.page.wait_for_timeout(20)

    def choose(self, name: str) -> None:
        drawn = int(self.page.locator("#plot").get_attribute("data-drawn"))
        self.page.get_by_role("checkbox", name=name).click()
        self.wait_for(drawn)


def test_it_opens_from_disk_and_asks_for_nothing_else(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page.as_uri(), 1280)
    first = opened.page.evaluate(DRAWN)
    assert [(x, y) for _, x, y in first] == [
        ([1, 2, 4], [50, 40, 1.2346]),
        ([1, 2, 4], [50, 41, 1.2346]),
    ]  # a pair that the table compares, before anything is chosen
    opened.page.locator("#metric").select_option("weights.error")
    opened.choose("80-40-40-sgd, seed 1")
    drawn = opened.page.evaluate(DRAWN)
    assert [y[-1] for _, _, y in drawn] == [30.5, 31.5, 29.5]
    rows = opened.page.locator("#values tbody tr")
    assert rows.count() == 3
    assert rows.nth(1).inner_text().split("\t")[1:5] == [
        "cifar100 cnn13, t1b 80-40-40-sgd, seed 1",
        "31.5",
        "4",
        "31.5",
    ]
    assert opened.complaints == []
    assert len([url for url in opened.requests if "/curves/" in url]) == 3
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    opened.page.close()


def test_the_address_keeps_the_choice(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page.as_uri(), 1280)
    opened.page.get_by_role("button", name="Choose none").click()
    opened.wait_for(1)
    opened.choose("80-40-40-ours, seed 2")
    opened.page.locator("#metric").select_option("train.loss")
    opened.page.get_by_label("to epoch").fill("6")
    opened.page.get_by_label("to epoch").press("Tab")
    opened.page.wait_for_url("**&to=6&**")
    address = opened.page.url
    opened.page.close()

    again = Opened(browser, address, 1280)
    (drawn,) = again.page.evaluate(DRAWN)
    assert len(drawn[1]) == 12
    assert drawn[2][1] == 0.5
    assert again.page.evaluate("document.getElementById('plot').layout.xaxis.range")[1] == 6
    again.page.evaluate("location.hash = '#runs=nothing'")
    again.wait_for(1)
    assert again.page.evaluate(DRAWN) == []
    assert "No run is chosen." in again.page.locator("#values").inner_text()
    again.page.evaluate("location.hash = '#run-1'")
    again.page.locator("#run-1 dl").wait_for(state="visible")  # it was folded away
    again.page.close()


def test_names_are_shown_as_text_and_runs_are_found(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page.as_uri(), 390)
    opened.page.get_by_label("Find runs").fill("alert more")
    assert opened.page.locator("#chooser li:visible").count() == 1
    assert "1 of 7 runs shown" in opened.page.locator("#shown").inner_text()
    opened.choose(NASTY)
    assert NASTY in opened.page.locator("#values").inner_text()
    box = opened.page.locator("#plot .points").last.locator("path").first.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    opened.page.locator("#plot .hoverlayer text").first.wait_for()
    assert NASTY in opened.page.locator("#plot .hoverlayer").inner_html().replace(
        "&lt;", "<"
    ).replace("&gt;", ">")
    assert opened.complaints == []
    opened.page.close()


def test_it_is_accessible_and_fits(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page.as_uri(), WIDTHS[0])
    opened.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    for width in WIDTHS:
        opened.page.set_viewport_size({"width": width, "height": 844})
        found = Axe().run(opened.page)
        assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in found["violations"]] == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.close()


def test_it_is_used_by_keyboard(browser: Browser, page: Path) -> None:
    opened = Opened(browser, page.as_uri(), 1280)
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("document.activeElement.textContent") == "Skip to the results"
    assert opened.page.locator(".skip").bounding_box()["y"] >= 0
    box = opened.page.get_by_role("checkbox", name="80-40-40-sgd, seed 1")
    box.focus()
    opened.page.keyboard.press("Space")
    opened.wait_for(1)
    assert len(opened.page.evaluate(DRAWN)) == 3
    opened.page.close()
