"""Groups of runs by hand-checked numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TINY
from made_records import configured, made_result

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.report.phase_ends import phase_ends
from phaseavg.report.records import RECIPE, read_runs

MADE_WITH = {
    "execution": {
        "device_name": "a CPU",
        "cpu_capability": "AVX2",
        "threads": 1,
        "precision": "fp32",
    },
    "versions": {"torch": "2.11.0"},
    "git": {"commit": "abc", "modified": False},
}


def write_record(
    folder: Path, name: str, seed: int, error: float, gamma0: float | None = None, **changes: Any
) -> None:
    """Write a record of one phase of one epoch; with γ0 its average is 1 % better."""
    averaging: dict[str, Any] = {"_target_": "phaseavg.averaging.NoAveraging"}
    if gamma0 is not None:
        averaging = {"_target_": "phaseavg.averaging.Phasewise", "weights": {"gamma0": gamma0}}
    config = {
        "dataset": {"_target_": "phaseavg.data.digits"},
        "model": {"_target_": "phaseavg.models.CNN13", "width": 1.0},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1},
        "schedule": {"_target_": "phaseavg.phases.Schedule", "epochs": [1]},
        "averaging": averaging,
        "seed": seed,
    }
    line = {"epoch": 1, "phase": 1, "replaced": False, "test_error": error}
    line["bn_test_error"] = error - 0.5
    if gamma0 is not None:
        line |= {"replaced": True, "average_test_error": error - 1}
    diverged = changes.pop("status", "finished") == "diverged"
    result = made_result(name, None if diverged else error, error - 0.5)
    result |= {"epochs": 1, "seconds": 2, "train_seconds": 1, "averaging_seconds": 0}
    result["provenance"] = [MADE_WITH]
    config |= changes.pop("config", {})
    (folder / name).mkdir(parents=True)
    (folder / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (folder / name / "result.json").write_text(json.dumps(result | changes))
    configured(folder / name, config)


def test_runs_are_grouped_by_the_settings_named(tmp_path: Path) -> None:
    write_record(tmp_path, "a", 0, 10.0, gamma0=0.9)
    write_record(tmp_path, "b", 1, 12.0, gamma0=0.9)
    write_record(tmp_path, "c", 0, 11.0, gamma0=0.5)
    write_record(tmp_path, "d", 0, 9.0)
    write_record(tmp_path, "e", 1, 90.0, status="diverged")  # counts for nothing
    table = phase_ends(read_runs(tmp_path), ["averaging", "averaging.weights.gamma0"])
    same = "−0.50 [−0.50, −0.50]"  # of both seeds
    assert table.to_dict("records") == [
        {
            "averaging": averaging,
            "averaging.weights.gamma0": gamma0,
            "end of": "phase 1 (epoch 1)",
            "n": n,
            "as trained": plain,
            "after a BN pass": bn,
            "average": average,
            "average − after a BN pass": gain,
        }
        for averaging, gamma0, n, plain, bn, average, gain in (
            ("noaveraging", "", 1, "9.00", "8.50", "", ""),
            ("phasewise", 0.5, 1, "11.00", "10.50", "10.00", "−0.50"),
            ("phasewise", 0.9, 2, "11.00 ± 1.41", "10.50 ± 1.41", "10.00 ± 1.41", same),
        )
    ]


def test_one_run_in_two_precisions_is_two_rows(tmp_path: Path) -> None:
    bf16 = {**MADE_WITH, "execution": {**MADE_WITH["execution"], "precision": "bf16"}}
    write_record(tmp_path, "fp32-a", 0, 10.0, run_id="a")
    write_record(tmp_path, "bf16-a", 0, 20.0, run_id="a", provenance=[bf16])
    table = phase_ends(read_runs(tmp_path), ["precision"])
    assert list(table["precision"]) == ["bf16", "fp32"]
    assert list(table["n"]) == [1, 1]
    assert list(table["as trained"]) == ["20.00", "10.00"]


def test_runs_that_are_no_repetitions_are_not_averaged(tmp_path: Path) -> None:
    write_record(tmp_path, "a", 0, 10.0, gamma0=0.9)
    write_record(tmp_path, "b", 1, 12.0, gamma0=0.5)
    with pytest.raises(UserError, match=r"=phasewise also differ in averaging\.weights\.gamma0;"):
        phase_ends(read_runs(tmp_path), ["averaging"])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"numerics_version": 2}, "numerics_version"),
        ({"config": {"batch_size": 64}}, "batch_size"),
    ],
)
def test_nor_are_runs_of_other_numerics_or_batches(
    tmp_path: Path, changes: dict, name: str
) -> None:
    write_record(tmp_path, "a", 0, 10.0)
    write_record(tmp_path, "b", 1, 12.0, **changes)
    with pytest.raises(UserError, match=f"also differ in {name};"):
        phase_ends(read_runs(tmp_path), ["averaging"])


def test_where_all_runs_diverged_there_is_nothing_to_compare(tmp_path: Path) -> None:
    write_record(tmp_path, "a", 0, 10.0, status="diverged")
    with pytest.raises(UserError, match="every run in it has diverged"):
        phase_ends(read_runs(tmp_path), ["averaging"])


def test_missing_or_damaged_metrics_are_named(tmp_path: Path) -> None:
    write_record(tmp_path, "a", 0, 10.0)
    (tmp_path / "a" / "metrics.jsonl").write_text('{"epoch": ')
    for _ in range(2):
        with pytest.raises(UserError, match=f"^{tmp_path}/a: a damaged record"):
            phase_ends(read_runs(tmp_path), ["averaging"])
        (tmp_path / "a" / "metrics.jsonl").unlink(missing_ok=True)


def test_what_was_tested_on_the_way_and_what_watched_are_there(tmp_path: Path) -> None:
    write_record(tmp_path, "a", 0, 10.0, gamma0=0.9)
    path = tmp_path / "a" / "metrics.jsonl"
    end = json.loads(path.read_text()) | {"epoch": 3, "swa_test_error": 7.5}
    on_the_way = {"phase": 1, "test_error": 20.0}
    lines = [
        on_the_way | {"epoch": 1},  # without a pass
        on_the_way | {"epoch": 2, "bn_test_error": 15.0, "average_test_error": 12.0},
        end | {"swa_without_bn_test_error": 90.0},
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    way, last = phase_ends(read_runs(tmp_path), ["averaging"]).to_dict("records")
    assert (way["end of"], last["end of"]) == ("epoch 2", "phase 1 (epoch 3)")
    assert (way["after a BN pass"], way["average − after a BN pass"]) == ("15.00", "−3.00")
    assert (way["swa"], last["swa"]) == ("", "7.50")
    assert "swa_without_bn" not in last


def test_runs_without_any_average_can_be_compared(tmp_path: Path) -> None:
    write_record(tmp_path, "a", 0, 10.0)
    (row,) = phase_ends(read_runs(tmp_path), ["averaging"]).to_dict("records")
    assert (row["as trained"], row["average"]) == ("10.00", "")


def test_a_run_continued_with_something_else_says_so(tmp_path: Path) -> None:
    execution = {**MADE_WITH["execution"], "device_name": "a GPU"}
    second = {**MADE_WITH, "execution": execution}
    write_record(tmp_path, "a", 0, 10.0, provenance=[MADE_WITH, second])
    (run,) = read_runs(tmp_path).to_dict("records")
    assert run["device_name"] == "a CPU + a GPU"
    assert run["torch"] == "2.11.0"


@pytest.mark.parametrize("name", ["run_id", "test_error", "seed", "path", "gamma"])
def test_what_is_no_setting_is_refused_with_the_choices(tmp_path: Path, name: str) -> None:
    write_record(tmp_path, "a", 0, 10.0)
    with pytest.raises(UserError, match=rf"^{name}: there is no such setting; .*model\.width"):
        phase_ends(read_runs(tmp_path), [name])


def test_a_setting_named_twice_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, "a", 0, 10.0)
    with pytest.raises(UserError, match="averaging: is named twice"):
        phase_ends(read_runs(tmp_path), ["averaging", "averaging"])


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_id": 1}'])
def test_a_damaged_record_is_named(tmp_path: Path, name: str, content: str) -> None:
    write_record(tmp_path, "a", 0, 10.0)
    write_record(tmp_path, "b", 1, 10.0)
    (tmp_path / "b" / name).write_text(content)
    with pytest.raises(UserError, match=f"^{tmp_path}/b: a damaged record"):
        read_runs(tmp_path)


def test_every_key_of_a_recipe_but_the_seed_tells_runs_apart(
    compose_settings: Callable[..., Settings],
) -> None:
    settings = compose_settings(*TINY, "averaging=rna", "optimizer=lookahead")
    columns = pd.json_normalize(settings.recipe(), sep=".").columns
    assert [name for name in columns if not name.startswith(RECIPE)] == ["seed"]
