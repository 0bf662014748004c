"""The page of all results has what the records say, escaped, and its blanks."""

import html
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from made_page import CONF, NASTY, PAPER, build, sources
from made_records import configured, keep

from phaseavg.errors import UserError
from phaseavg.report import page as page_module
from phaseavg.report.compare import figure, read_members
from phaseavg.report.curves import GOING_ON, label_of, script, series
from phaseavg.report.page import write_page
from phaseavg.report.run_cards import cards_in, read_card
from phaseavg.report.study import read_study


def silent(text: str) -> None:
    """Say nothing."""


def text_of(markup: str) -> str:
    """Return what a reader sees of HTML."""
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", markup)))


def test_it_says_what_is_there_and_what_is_missing(page: Path) -> None:
    text = text_of(page.read_text())
    assert "2 of the 2 cells of the paper's tables have runs at full size." in text
    assert "1b 2 of 2, n = 2; 1 diverged 0 of 1" in text
    assert "ours 31.00 ± 0.71 (2, 1 diverged) 30.00 ± 0.71 (2)" in text
    assert "paper 26.52 ± 0.16" in text
    assert "C3 phase-wise averaging beats SGD at every length of training open" in text
    assert "No run has ended yet. What is missing is trained by make mini" in text
    assert "There are none in" in text  # figures of the miniature


def test_runs_that_diverged_or_broke_off_are_shown_as_such(page: Path) -> None:
    text = text_of(page.read_text())
    assert "diverged: nan at step 3 (epoch 1, learning rate 0.1); 2 of 160 epochs" in text
    assert "12 of 160 epochs; broke off: no & disk <left>" in text
    assert re.search(r"1 broken off, 1 diverged, 4 finished", text)


def test_of_each_run_is_said_how_it_was_made_and_how_it_is_repeated(page: Path) -> None:
    text = text_of(page.read_text())
    assert "cifar100 cnn13, t1b 80-40-40-ours, seed 0" in text
    assert "device a GPU, AVX2, 1 thread" in text
    assert "time 111.0 s for 2 epochs" in text
    assert f"commit {'0' * 40} repeat it" in text
    assert "repeat it python train.py preset=demo seed=0 rerun=true Learning" in text
    cell = "dataset=cifar100 model=cnn13 schedule=80-40-40 averaging=phasewise seed=2"
    assert re.search(f"go on with it python train.py [^ ]* ?[^ ]* ?{cell} Learning", text)
    assert "repeat it python train.py 'model=<script>alert(1)</script>' rerun=true" in text


def test_figures_have_their_captions_or_what_is_missing(page: Path) -> None:
    markup = page.read_text()
    assert '<img src="figures/drawn.svg" alt="A square &amp; more" loading="lazy">' in markup
    assert "<figcaption>What it &lt;shows&gt;. As a file: " in markup
    assert '<p class="missing">no runs; make some</p>' in markup
    assert "figures/blank" not in markup
    partial = markup.partition("<h4>A part</h4>")[2].partition("</figure>")[0]
    assert '<p class="missing">seed 2; train it</p>' in partial
    assert '<img src="figures/partial.svg"' in partial
    assert 'href="figures/partial.csv"' in partial


def test_names_and_values_are_escaped(page: Path) -> None:
    markup = page.read_text()
    assert "<script>alert" not in markup
    assert html.escape(NASTY) in markup
    assert html.escape(NASTY.replace("1", "2")) in markup
    assert len(re.findall("<script", markup)) == 2  # the page's own two
    assert "</script" not in script("1", [{"epoch": 1, "</script>": 2.0}])


def test_the_same_records_give_the_same_bytes_and_other_files_stay(page: Path) -> None:
    def content() -> dict[Path, bytes]:
        files = [page, *page.parent.glob("page/**/*")]
        return {path: path.read_bytes() for path in files if path.is_file()}

    before = content()
    assert sum(map(len, before.values())) < 8e6
    mine = [page.parent / name for name in ("page/curves/99.js", "page/mine.txt", "mine.html")]
    for path in mine:
        path.write_text("mine")
    build(page.parents[1])
    assert {path.read_text() for path in mine} == {"mine"}
    for path in mine:
        path.unlink()
    assert content() == before
    assert {path.name for path in page.parent.iterdir()} == {"figures", "index.html", "page"}
    assert not re.search(r"https?://(?!www.w3.org)", page.read_text())


@pytest.mark.parametrize("name", ["index.html", "page/page.css"])
def test_a_file_that_no_page_was_made_of_is_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: is in the way"):
        write_page(tmp_path, [], [], CONF, PAPER, silent)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]
    assert (tmp_path / name).read_text() == "mine"


def test_an_old_page_never_loads_the_curves_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (full, _) = sources(tmp_path)
    first, second, *_ = read_study(full.overrides, CONF, PAPER).runs.values()
    keep(second.settings, 25.0)
    results = tmp_path / "results"

    def curves() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in results.glob("page/curves/*")}

    index, _ = write_page(results, [full], [], CONF, PAPER, silent)
    before, old = curves(), index.read_bytes()
    assert len(before) == 1
    keep(first.settings, 24.0)  # before the other one on the page
    to_file = page_module.write_atomically

    def full_disk(path: Path, *rest: Any) -> None:
        if path == index:
            raise UserError("--results: no room")
        to_file(path, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(page_module, "write_atomically", full_disk)
        with pytest.raises(UserError, match="no room"):
            write_page(results, [full], [], CONF, PAPER, silent)
    assert index.read_bytes() == old
    assert before.items() <= curves().items()
    write_page(results, [full], [], CONF, PAPER, silent)
    assert len(after := curves()) == 2
    assert before.items() <= after.items()
    shutil.rmtree(second.settings.run_folder)
    write_page(results, [full], [], CONF, PAPER, silent)
    assert curves().keys() == after.keys() - before.keys()


def test_without_any_results_it_says_which_command_makes_them(tmp_path: Path) -> None:
    index, folder = write_page(tmp_path / "new", sources(tmp_path)[1:], [], CONF, PAPER, silent)
    text = text_of(index.read_text())
    assert "0 of the 1 cells" in text
    assert "No run has ended yet. What is missing is trained by make mini" in text
    assert "There is no run yet that has curves. make demo trains eight" in text
    assert list((folder / "curves").iterdir()) == []


def test_mistakes_and_damage_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from scripts import report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "SOURCES", (None,))  # no study is looked at before a mistake

    def typed(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        return report.main(), capsys.readouterr().err

    assert typed("--runs", "nowhere") == (
        2,
        "report.py: --runs=nowhere: there is no such folder\n",
    )
    (tmp_path / "empty").mkdir()
    status, error = typed("--runs", "empty")
    assert (status, error.count("\n")) == (2, 1)
    assert "--runs=empty: there is no run in it" in error
    assert not (tmp_path / "results").exists()
    monkeypatch.setattr(report, "SOURCES", ())
    (tmp_path / "empty" / "run").mkdir()
    (tmp_path / "empty" / "run" / "result.json").write_text("{")
    assert typed("--runs", "empty") == (0, "")
    text = text_of((tmp_path / "results" / "index.html").read_text())
    assert "damaged: JSONDecodeError: Expecting property name" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "dataset: {_target_: a"),
        ("config.yaml", "dataset: a\nmodel: b\n"),
        ("result.json", '{"run_id": "a", "sta'),
        ("result.json", '{"run_id": "a", "status": "finished", "seconds": 1, "test_error": 2}'),
    ],
)
def test_a_damaged_run_is_shown_as_such_and_the_others_too(
    tmp_path: Path, name: str, content: str
) -> None:
    (full, _) = sources(tmp_path)
    damaged, whole, *_ = read_study(full.overrides, CONF, PAPER).runs.values()
    keep(whole.settings, 25.0)
    folder = keep(damaged.settings, 24.0)
    (folder / name).write_text(content)
    said: list[str] = []
    index, _ = write_page(tmp_path / "results", [full], [], CONF, PAPER, said.append)
    text = text_of(index.read_text())
    assert "n = 1" in text
    assert "finished: test error 25.00 %" in text
    assert "Mark object" not in text
    assert any(line.startswith(f"{folder}: damaged: ") for line in said)
    assert all("\n" not in line for line in said)
    assert "damaged: " in text
    assert "1 damaged, 1 finished" in text
    assert "seed=0 rerun=true" in text


def test_damaged_figures_are_named(tmp_path: Path) -> None:
    (tmp_path / "figures" / "mini").mkdir(parents=True)
    (tmp_path / "figures" / "mini" / "figures.json").write_text('{"a": {"title": "t"}}')
    with pytest.raises(UserError, match=r"figures.json: is damaged .* draw the figures anew"):
        write_page(tmp_path, sources(tmp_path)[1:], [], CONF, PAPER, silent)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that is there once the module `trapped`, or what is in it, has been loaded."""
    sprung = tmp_path / "sprung"
    (tmp_path / "trapped.py").write_text(f"open({str(sprung)!r}, 'w').close()\nPart = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    return sprung


@pytest.mark.parametrize("nested", [False, True])
def test_reading_a_record_executes_nothing_that_it_names(
    compose_settings: Callable[..., Any], trap: Path, nested: bool
) -> None:
    folder = keep(compose_settings(*TINY), 20.0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    command = {"_target_": "os.system", "command": f"touch {trap}"}
    module = {"_target_": "trapped.Part"}
    bad = config | {"schedule": command, "model": module}
    if nested:
        bad = config | {"observers": {"mine": {**module, "of": [command]}}}
    configured(folder, bad)
    card = read_card(folder)
    assert card.epochs == (sum(config["schedule"]["epochs"]) if nested else None)
    (member,) = read_members([str(folder)], CONF)
    assert member.courses[0].ends[-1:] == ([card.epochs] if nested else [])
    assert figure([member]).axes
    assert not trap.exists()


def test_curves_are_rounded_and_have_gaps() -> None:
    lines = [
        {"epoch": 1, "weights": {"error": 50.123456}, "train": {"loss": float("nan")}},
        {"epoch": 2, "weights": {"error": None}, "seconds": {"train": 3.0}},
        {"epoch": 3, "weights": {"error": 40}, "average": {"error": 30}, "replaced": True},
    ]
    assert series(lines) == {
        GOING_ON: [50.123, None, 30.0],
        "weights.error": [50.123, None, 40.0],
        "average.error": [None, None, 30.0],
        "seconds.train": [None, 3.0, None],
    }
    assert label_of("average.error") == "Test error (%) of the average"
    assert label_of("observers.swa_1.error") == "observers swa_1 error"


def test_a_run_that_ended_elsewhere_is_preferred(page: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    (unended,) = (c for c in cards_in(page.parents[1] / "runs") if c.status == "broken off")
    shutil.copytree(unended.folder, records / unended.run_id)
    ids = [card.run_id for card in cards_in(records, unended.folder.parent)]
    assert ids.count(unended.run_id) == 1
    (ended, *_) = (c for c in cards_in(page.parents[1] / "runs") if c.status == "finished")
    shutil.copytree(ended.folder, records / ended.run_id)
    (records / ended.run_id / "result.json").unlink()
    found = {c.run_id: c for c in cards_in(records, ended.folder.parent)}
    assert found[ended.run_id].status == "finished"
    early = tmp_path / "early"
    early.mkdir()
    (early / "failure.json").write_text(json.dumps({"run_id": early.name, "error": "no GPU"}))
    assert read_card(early).state == "0 of unknown epochs; broke off: no GPU"
