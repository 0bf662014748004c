"""The list of Table 1 and its cost, by hand."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, TINY
from made_records import change, keep, line, rows

from phaseavg.report.cells import read_paper
from phaseavg.report.headline import METHODS, cost, headline
from phaseavg.runs.records import load_runs

PAPER = read_paper(REPOSITORY / "results/paper.csv")
END = line(5, 20.0, 20.0, replaced=False)


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_each_method_is_beside_sgd_of_the_same_length() -> None:
    sgd, ours, at_the_end = (
        ("t1b", "mini", "cnn13", "80-40-40-sgd"),
        ("t1a", "mini", "cnn13", "gamma0-0.9"),
        ("t1c", "mini", "cnn13", "at-the-end"),
    )
    frame = rows(
        *(
            (*sgd, seed, error, {"bn_test_error": error - 0.5})
            for seed, error in ((0, 30.0), (1, 32.0))
        ),
        *((*ours, seed, error) for seed, error in ((0, 29.0), (1, 30.0), (2, 31.0))),
        (*at_the_end, 0, 30.5),
        ("t1c", "mini", "cnn13", "every-k", 0, 30.1, {"bn_test_error": 29.7}),
        ("t1b", "mini", "cnn13", "60-30-30-sgd", 0, 40.0),
        ("t1b", "mini", "other", "60-30-30-ours", 0, 10.0),
    )
    table, _, caption = headline(frame, "cnn13", PAPER).partition("\n\n")
    head, _, *found = lines(table)
    assert "SGD after such a pass" in caption
    assert len(found) == sum(map(len, METHODS.values()))
    by_name = {(line[0], line[1]): dict(zip(head, line, strict=True)) for line in found}
    plain = by_name["80-40-40", "SGD"]
    assert (plain["n"], plain["error"], plain["− SGD"]) == ("2", "31.00 ± 1.41", "")
    assert plain["paper's error"] == "26.52 ± 0.16"
    line = by_name["80-40-40", "phase-wise, γ0 = 0.9"]
    assert (line["n"], line["error"]) == ("3", "30.00 ± 1.00")
    # Of the seeds that both have: −1 and −2; t of one degree of freedom 12.706, standard error 0.5.
    assert line["− SGD"] == "−1.50 [−7.85, +4.85]"
    after = "− SGD, both after a BN pass"
    assert line[after] == "−1.00 [−7.35, +5.35]"
    trained = by_name["80-40-40", "Lookahead"]  # as trained, and after a pass: like with like
    assert (trained["− SGD"], trained[after]) == ("+0.10", "+0.20")
    assert (line["paper's error"], line["paper's − SGD"]) == ("26.05 ± 0.08", "−0.47")
    assert by_name["80-40-40", "averaged at the end"]["− SGD"] == "+0.50"  # one seed: no interval
    assert by_name["60-30-30", "phase-wise, γ0 = 0.9"]["n"] == ""  # another network's


def test_what_runs_have_in_common_costs_once(
    compose_settings: Callable[..., Any], tmp_path: Path
) -> None:
    segment = {"trajectory": "t", "prefix": "p", "first_epoch": 1, "last_epoch": 2, "seconds": 30.0}
    for seed in range(3):
        settings = compose_settings(*TINY, f"seed={seed}")
        folder = keep(settings, 20.0, metrics=[line(n) for n in range(1, 5)] + [END])
        change(folder, seconds={"total": 100.0})
        if seed < 2:
            change(folder, inherited={"epochs": 2, "seconds": 25.0, "segments": [segment]})
    runs, _ = load_runs(settings.runs_dir)
    assert cost(runs) == (3 + 3 + 5 + 2, 75 + 75 + 100 + 30)
    assert cost(load_runs(tmp_path / "none")[0]) == (0, 0)


def test_it_goes_between_the_marks_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts import headline as script

    def typed(*arguments: str) -> int:
        places = (f"runs_dir={tmp_path}", f"records_dir={tmp_path}")
        monkeypatch.setattr(sys, "argv", ["headline.py", *places, *arguments])
        return script.main()

    readme = tmp_path / "README.md"
    readme.write_text("a <!-- results -->\nold\n<!-- /results --> b\n")
    assert typed("preset=mini-cifar100", "model=cnn13", "--readme", str(readme)) == 0
    text = capsys.readouterr().out.strip()
    assert readme.read_text() == f"a <!-- results -->\n\n{text}\n\n<!-- /results --> b\n"
    assert "0 runs" in text
    readme.write_text("no marks")
    assert typed("preset=mini-cifar100", "model=cnn13", "--readme", str(readme)) == 2
    assert typed("preset=mini-cifar100", "model=nothing") == 2
    assert "model=nothing: table=t1a,t1b,t1c,t1d has no such model" in capsys.readouterr().err
