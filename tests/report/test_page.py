"""The page of all results has what the records say, escaped, and its blanks."""

import dataclasses
import html
import json
import re
import shutil
import sys
import tarfile
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
from phaseavg.report.repeat import Repeats, changes, command, of_a_table
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
    assert "cifar100 cnn13, 1b 80-40-40-ours, seed 0" in text
    assert "device a GPU, AVX2, 1 thread" in text
    assert "time 111.0 s for 2 epochs" in text
    assert f"commit {'0' * 40} repeat it" in text
    told = (
        "python train.py dataset=cifar100 model=cnn13 schedule=80-40-40 averaging=phasewise seed="
    )
    assert f"repeat it {told}0 force=true Learning" in text
    assert f"go on with it {told}2 Learning" in text
    assert "No command can be told: its config is none that today's options make." in text


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
        "report.py: --runs=nowhere: there is no such file or folder\n",
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
    assert f"A record does not count. {folder}: a damaged record (" in text
    assert "n = 1" in text
    assert "finished: test error 25.00 %" in text
    assert "Mark object" not in text
    assert any(line.startswith(f"{folder}: a damaged record (") for line in said)
    assert all("\n" not in line for line in said)
    assert "damaged: " in text
    assert "1 damaged, 1 finished" in text
    assert "seed=0 force=true" in text


def test_archives_and_damaged_figures(tmp_path: Path) -> None:
    thin = dataclasses.replace(sources(tmp_path)[1], archive="packed.tar.xz")
    (run, *_) = read_study(thin.overrides, CONF, PAPER).runs.values()
    keep(run.settings, 25.0)
    results = tmp_path / "results"
    results.mkdir()
    with tarfile.open(archive := results / "packed.tar.xz", "w:xz") as packed:
        packed.add(run.settings.run_folder, f"some/{run.settings.run_id}")
    shutil.rmtree(run.settings.runs_dir)
    index, _ = write_page(results, [thin], [archive], CONF, PAPER, silent)
    text = text_of(index.read_text())
    assert "1 of the 1 cells" in text
    assert f"Runs in {archive} " in text
    told = "python train.py preset=mini dataset=digits model=cnn13_digits schedule=80-40-40"
    assert text.count(f"{told} averaging=phasewise seed=0 force=true") == 2
    (results / "figures" / "mini").mkdir(parents=True)
    (results / "figures" / "mini" / "figures.json").write_text('{"a": {"title": "t"}}')
    with pytest.raises(UserError, match=r"figures.json: is damaged .* draw the figures anew"):
        write_page(results, [thin], [], CONF, PAPER, silent)


def test_the_command_makes_the_same_run(compose_settings: Callable[..., Any]) -> None:
    settings = compose_settings(
        *TINY,
        "optimizer=lookahead",
        "averaging=rna",
        "averaging.weights.rho=1e-3",
        "weight_decay=0.002",
        "+schedule.divisor=2",
        "+averaging@watch.swa=uniform",
        "execution.threads=1",
        "seed=7",
    )
    config = json.loads(json.dumps(settings.record()))
    overrides = Repeats(CONF).overrides_of(config, settings.run_id)
    assert overrides is not None
    assert {"dataset=digits", "optimizer=lookahead", "averaging=rna"} <= set(overrides)
    made = compose_settings(*overrides)
    assert made.run_id == settings.run_id
    assert made.record() == settings.record()
    assert command(["schedule='80'", "runs_dir=x", "seed=0"], False, CONF) == (
        "python train.py schedule=80 seed=0"
    )


def test_what_differs_from_a_composed_config_becomes_overrides() -> None:
    own = {"a": {"b": 1, "c": [1, 0.1]}, "d": None, "e": "x y", "f": "fp32", "new": {"k": "null"}}
    other = {
        "a": {"b": 2, "c": [1, 0.1]},
        "d": True,
        "e": "z",
        "f": "auto",
        "model": {"gone": 1},
        "newer": 1,
        "seed": 3,
    }
    assert changes(own, other) == [
        "a.b=1",
        "d=null",
        "e='x y'",
        "~model.gone",
        "+new.k='null'",
    ]


def test_a_key_that_is_newer_than_a_record_is_no_change(
    compose_settings: Callable[..., Any],
) -> None:
    settings = compose_settings(*TINY, "optimizer=lookahead", "execution.threads=1")
    whole = json.loads(json.dumps(settings.record()))
    older = {key: value for key, value in whole.items() if key not in ("snapshots", "weights")}
    del older["execution"]["workers"], older["evaluation"]["batchnorm_every"]
    assert Repeats(CONF).overrides_of(older, settings.run_id) == (
        Repeats(CONF).overrides_of(whole, settings.run_id)
    )
    (cell, *_) = read_study(sources(Path("none"))[0].overrides, CONF, PAPER).runs.values()
    record = json.loads(json.dumps(cell.settings.record()))
    assert record.pop("snapshots") == "none"
    assert of_a_table(cell, record) == list(cell.overrides)


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
    (folder / "metrics.jsonl").write_text("")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    command = {"_target_": "os.system", "command": f"touch {trap}"}
    module = {"_target_": "trapped.Part"}
    bad = config | {"schedule": command, "model": module}
    if nested:
        bad = config | {"watch": {"mine": {**module, "of": [command]}}}
    configured(folder, bad)
    card = read_card(folder)
    assert card.epochs == (sum(config["schedule"]["epochs"]) if nested else None)
    (member,) = read_members([str(folder)], CONF)
    assert member.courses[0].ends[-1:] == ([card.epochs] if nested else [])
    assert figure([member]).axes
    repeats = Repeats(CONF)
    assert not repeats.knows(bad)
    assert repeats.overrides_of(bad, card.run_id) is None
    for change in (
        {"averaging": {"_target_": "${oc.decode:trapped.Part}"}},
        {"model._target_": "trapped.Part"},
        {"hydra": {"searchpath": ["pkg://trapped"]}},
    ):
        assert repeats.overrides_of(config | change, card.run_id) is None
    assert not trap.exists()


def test_curves_are_rounded_and_have_gaps() -> None:
    history = [
        {"epoch": 1, "test_error": 50.123456, "train_loss": float("nan"), "replaced": False},
        {"epoch": 2, "test_error": None, "carried0_seconds": 3.0},
        {"epoch": 3, "test_error": 40, "average_test_error": 30, "replaced": True, "mine_x": 1},
    ]
    assert series(history) == {
        GOING_ON: [50.123, None, 30.0],
        "test_error": [50.123, None, 40.0],
        "average_test_error": [None, None, 30.0],
        "mine_x": [None, None, 1.0],
    }
    assert label_of("swa_without_bn_test_error") == "Test error (%) of swa without a BatchNorm pass"
    assert label_of("mine_x") == "Mine x"


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
    (early / "failure.json").write_text('{"error": "no GPU"}')
    assert read_card(early).state == "0 of unknown epochs; broke off: no GPU"
