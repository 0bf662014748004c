"""Runs beside each other: their settings, errors and curves, by hand and of a trained run."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, TINY, Prompt
from made_records import keep, line

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.report.compare import (
    at_phase_ends,
    differing,
    figure,
    listed,
    summarised,
)
from phaseavg.report.members import letter, read_members
from scripts import compare as script

CONF = REPOSITORY / "conf"
ONE = "t1a/digits/cnn13_digits"


def history(error: float, epochs: int = 5) -> list[dict[str, Any]]:
    """Return metrics of phases of 2, 2 and 1 epochs, whose averages are 1 % better."""
    lines = []
    for epoch in range(1, epochs + 1):
        now = error + 5 - epoch + 1
        end = epoch in (2, 4, 5)
        tests = (now, now - 0.5, now - 1) if end else (now,)
        others = {"phase": (epoch + 1) // 2, **({"replaced": True} if end else {})}
        lines.append(line(epoch, *tests, **others))
    return lines


def leave(settings: Settings, error: float, epochs: int = 5, **execution: Any) -> Path:
    """Write a run that has come so far, with a result if that is all of it; return its folder."""
    folder = keep(settings, error, metrics=history(error, epochs), **execution)
    if epochs < 5:
        (folder / "result.json").unlink()
    return folder


def test_letters_go_on_after_z() -> None:
    assert [letter(n) for n in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


def test_two_runs_of_a_seed_are_a_pair(compose_settings: Callable[..., Settings]) -> None:
    first = leave(compose_settings(*TINY), 20.0)
    second = leave(compose_settings(*TINY, "averaging.weights.gamma0=0.5"), 22.0)
    members = read_members([str(first), str(second)], CONF)
    assert [member.letter for member in members] == ["a", "b"]
    assert list(listed(members)["status"]) == ["finished", "finished"]
    assert differing(members).to_dict("records") == [
        {"setting": "averaging.weights.gamma0", "a": "0.9", "b": "0.5"}
    ]
    a, b = summarised(members).to_dict("records")
    assert (a["last"], a["best"], a["after a BN pass"]) == ("20.00", "20.00", "20.00")
    assert (a["seconds"], a["n"], a["last − a"]) == ("15", 1, "")
    assert b["last − a"] == "+2.00 (1)"
    ends = at_phase_ends(members)
    assert list(ends["epoch"]) == [2, 4, 5] * 2
    assert ends.iloc[0][["as trained", "after a BN pass", "average"]].tolist() == [
        "24.00",
        "23.50",
        "23.00",
    ]


def test_what_was_computed_otherwise_is_no_pair(
    compose_settings: Callable[..., Settings],
) -> None:
    first = leave(compose_settings(*TINY), 20.0)
    other = leave(compose_settings(*TINY, "averaging=end"), 22.0, threads=2)
    seed = leave(compose_settings(*TINY, "averaging=end", "seed=1"), 22.0)
    data = leave(compose_settings(*TINY, "dataset.label_noise=0.1"), 22.0)
    members = read_members([str(path) for path in (first, other, seed, data)], CONF)
    assert list(summarised(members)["last − a"]) == [""] * 4
    settings = differing(members).set_index("setting")
    assert settings.loc["computed by", "b"].startswith("a GPU, AVX2, 2 threads, fp32")
    assert list(settings.loc["seed"]) == ["0", "0", "1", "0"]
    assert settings.loc["averaging.window"].tolist() == ["", "training", "training", ""]


def test_how_far_a_run_has_come_is_said(compose_settings: Callable[..., Settings]) -> None:
    whole = leave(compose_settings(*TINY), 20.0)
    half = leave(compose_settings(*TINY, "seed=1"), 20.0, epochs=3)
    failed = leave(compose_settings(*TINY, "seed=2"), 20.0, epochs=1)
    (failed / "failure.json").write_text(json.dumps({"run_id": failed.name, "error": "no room"}))
    diverged = keep(compose_settings(*TINY, "seed=3"), None, metrics=[])
    begun = leave(compose_settings(*TINY, "seed=4"), 20.0, epochs=0)
    (begun / "metrics.jsonl").unlink()
    members = read_members([str(p) for p in (whole, half, failed, diverged, begun)], CONF)
    assert list(listed(members)["status"]) == [
        "finished",
        "not finished, epoch 3 of 5",
        "failed, epoch 1 of 5",
        "diverged in epoch 1",
        "not finished, epoch 0 of 5",
    ]
    rows = summarised(members).to_dict("records")
    assert [row["last"] for row in rows] == ["20.00", "23.00", "25.00", "", ""]
    _, below = figure(members).axes
    drawn = {line.get_color(): line for line in reversed(below.get_lines())}
    lengths = [len(line.get_xdata()) for line in drawn.values()]
    assert sorted(lengths) == [1, 2, 3, 5]  # the boundaries' two ends; nothing of the others


def test_a_run_that_kept_its_lock_is_in_training(
    compose_settings: Callable[..., Settings],
) -> None:
    import fcntl

    half = leave(compose_settings(*TINY), 20.0, epochs=3)
    with (half / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (member,) = read_members([str(half)], CONF)
        assert listed([member])["status"].item() == "in training, epoch 3 of 5"


@pytest.fixture
def cells(compose_settings: Callable[..., Settings], tmp_path: Path) -> list[str]:
    """Leave records of two columns of a table in miniature; return what else is to be typed."""
    errors = {"averaging.weights.gamma0=0.9": (20.0, 21.0, 22.0), "averaging=rna": (21.0, 23.0)}
    for override, values in errors.items():
        for seed, error in enumerate(values):
            asked = ("averaging=phasewise", override, f"seed={seed}")
            leave(compose_settings("preset=mini", *asked), error)
    unended = compose_settings("preset=mini", "averaging=rna", "seed=2")
    leave(unended, 30.0, epochs=3)
    return ["preset=mini", f"runs_dir={tmp_path}/runs", f"records_dir={tmp_path}/records"]


def test_a_cell_is_all_its_seeds(cells: list[str]) -> None:
    members = read_members(["t1a/gamma0-0.9", *cells, "t1a/cnn13_digits/learnt"], CONF)
    assert [member.name for member in members] == [f"{ONE}/gamma0-0.9", f"{ONE}/learnt"]
    status = list(listed(members)["status"])
    assert status == ["3 finished", "2 finished; 1 not finished, epoch 3 of 16"]
    a, b = summarised(members).to_dict("records")
    assert (a["n"], a["last"]) == (3, "21.00 ± 1.00")
    assert (b["n"], b["last"]) == (2, "22.00 ± 1.41")  # of the finished ones
    # Differences 1 and 2; t of one degree of freedom 12.706, standard error 0.5.
    assert b["last − a"] == "+1.50 [−4.85, +7.85] (2)"
    assert list(at_phase_ends(members)["n"]) == [3, 3, 3, 2, 2, 2]
    settings = differing(members).set_index("setting")
    assert "seed" not in settings.index
    assert settings.loc["averaging.weights._target_"].tolist() == [
        "phaseavg.averaging.Exponential",
        "phaseavg.averaging.RNA",
    ]


def test_the_curves_are_the_metrics_with_their_mean(cells: list[str]) -> None:
    members = read_members([f"{ONE}/gamma0-0.9", *cells], CONF)
    above, below = figure(members).axes
    *seeds, mean, after, average, _, _ = above.get_lines()
    assert [list(line.get_ydata()) for line in seeds] == [
        [error + 5 - epoch for epoch in range(5)] for error in (20.0, 21.0, 22.0)
    ]
    assert list(mean.get_ydata()) == [26.0, 25.0, 24.0, 23.0, 22.0]
    assert list(after.get_xdata()) == list(average.get_xdata()) == [2, 4, 5]
    assert list(after.get_ydata()) == [24.5, 22.5, 21.5]
    assert list(average.get_ydata()) == [24.0, 22.0, 21.0]
    assert list(below.get_lines()[0].get_ydata()) == [1 / epoch for epoch in range(1, 6)]
    ends = [line.get_xdata()[0] for line in below.get_lines()[-2:]]
    assert sorted(ends) == [8.5, 12.5]  # of the schedule's 8, 4 and 4 epochs


def test_a_trained_run_has_the_numbers_of_its_result(prompt: Prompt, tmp_path: Path) -> None:
    assert prompt(*TINY, "schedule.epochs=[2,1]", "schedule.factors=[1,0.1]")[0] == 0
    (folder,) = (tmp_path / "runs").glob("digits-*")
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    result = json.loads((folder / "result.json").read_text())
    members = read_members([str(folder), str(copied)], CONF)
    for member in members:
        (course,) = member.courses
        for key in ("test_error", "best_test_error", "with_bn_pass", "phases"):
            assert course.errors[key] == result[key]
        assert course.seconds == pytest.approx(result["seconds"]["total"])
    assert summarised(members)["last − a"].tolist() == ["", "+0.00 (1)"]
    assert differing(members).empty


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    return script.main()


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_tables_and_picture_at_the_prompt(
    kind: str,
    compose_settings: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    runs = [str(leave(compose_settings(*TINY, f"seed={seed}"), 20.0)) for seed in (0, 1)]
    output = tmp_path / "new" / f"picture.{kind}"
    assert typed(monkeypatch, *runs, "--output", str(output)) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"{output}\n")
    assert "| seed      | 0   | 1   |" in out
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert output.read_bytes().startswith(starts[kind])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["t1a/gamma0-09"], "t1a/gamma0-09: there is no such cell; choices: t1a/gamma0-0.99, "),
        (["t1a/cnn31/learnt"], "t1a/cnn31/learnt: there is no such cell; choices: t1a/cnn13"),
        (["9z/learnt"], "9z/learnt: is neither the folder of a run nor a cell; choices: TABLE/"),
        (["t1a"], "t1a: is neither the folder of a run nor a cell"),
        (["t1a/cnn13/learnt", "nothing=1"], "nothing"),
        (["t1b/cnn13/80-40-40-sgd"], "t1b/cnn13/80-40-40-sgd: there is no run of it yet; python"),
        (["preset=mini"], "RUN: is missing; name folders of runs, or cells such as t1a/learnt"),
        (
            ["t1a/learnt", "--output", "x.gif"],
            "--output=x.gif: must end in one of .png, .svg, .pdf",
        ),
    ],
)
def test_mistakes_get_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    told: str,
) -> None:
    places = [f"runs_dir={tmp_path}", f"records_dir={tmp_path}"] * (len(arguments) == 1)
    monkeypatch.chdir(tmp_path)
    assert typed(monkeypatch, *arguments, *places) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"compare.py: {told}")
    assert err.count("\n") == 1


def test_a_folder_that_is_none_names_those_beside_it(
    compose_settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = leave(compose_settings(*TINY), 20.0)
    wrong = str(folder)[:-1]
    with pytest.raises(UserError, match=f"^{wrong}: there is no such folder; .*{folder.name}$"):
        read_members([wrong], CONF)
    with pytest.raises(UserError, match=f"is no folder of a run; choices in it: {folder.name}$"):
        read_members([str(folder.parent)], CONF)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "result.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_run_is_named(
    compose_settings: Callable[..., Settings], name: str, content: str
) -> None:
    folder = leave(compose_settings(*TINY), 20.0)
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"^{folder}: a damaged record"):
        read_members([str(folder)], CONF)
