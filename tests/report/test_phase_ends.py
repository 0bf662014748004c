"""Groups of runs by hand-checked numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TINY
from made_records import change, configured, keep, line

from phaseavg.config import Settings
from phaseavg.errors import UserError
from phaseavg.report.phase_ends import RECIPE, phase_ends, read_repetitions
from phaseavg.runs.records import load_runs

Made = Callable[..., Path]

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


@pytest.fixture
def made(compose_settings: Callable[..., Settings]) -> Made:
    """Return a function that writes a record of one phase of one epoch; returns its folder."""
    base = compose_settings(*TINY)

    def write(seed: int, error: float | None, gamma0: float | None = None, **values: Any) -> Path:
        """Write it; with γ0 its average is 1 % better."""
        config = json.loads(json.dumps(base.record())) | {"seed": seed}
        config["averaging"] = {"_target_": "phaseavg.averaging.NoAveraging"}
        metrics = [line(1)]
        if error is not None:
            average = None if gamma0 is None else error - 1
            metrics = [line(1, error, error - 0.5, average, replaced=gamma0 is not None)]
        if gamma0 is not None:
            weights = {"gamma0": gamma0}
            config["averaging"] = {"_target_": "phaseavg.averaging.Phasewise", "weights": weights}
        folder = keep(base, error, where=base.runs_dir / "new", metrics=metrics)
        change(folder, **{"provenance": [MADE_WITH], **values.pop("result", {})})
        return folder.rename(folder.with_name(configured(folder, config | values)))

    return write


def table_of(folder: Path, by: list[str]) -> list[dict[str, Any]]:
    return phase_ends(read_repetitions(folder, by)[1], by).to_dict("records")


def test_runs_are_grouped_by_the_settings_named(made: Made) -> None:
    made(0, 10.0, gamma0=0.9)
    made(1, 12.0, gamma0=0.9)
    made(0, 11.0, gamma0=0.5)
    made(0, 9.0)
    runs = made(1, None).parent  # diverged: counts for nothing
    same = "−0.50 [−0.50, −0.50]"  # of both seeds
    assert table_of(runs, ["averaging", "averaging.weights.gamma0"]) == [
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


def test_runs_in_two_precisions_are_two_rows(made: Made) -> None:
    bf16 = {**MADE_WITH, "execution": {**MADE_WITH["execution"], "precision": "bf16"}}
    made(0, 10.0)
    runs = made(1, 20.0, result={"provenance": [bf16]}).parent
    first, second = table_of(runs, ["precision"])
    assert (first["precision"], first["n"], first["as trained"]) == ("bf16", 1, "20.00")
    assert (second["precision"], second["n"], second["as trained"]) == ("fp32", 1, "10.00")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"gamma0": 0.5}, r"averaging\.weights\.gamma0"),
        ({"gamma0": 0.9, "result": {"numerics_version": 2}}, "numerics_version"),
        ({"gamma0": 0.9, "batch_size": 64}, "batch_size"),
    ],
)
def test_runs_that_are_no_repetitions_are_not_averaged(
    made: Made, changes: dict, name: str
) -> None:
    made(0, 10.0, gamma0=0.9)
    runs = made(1, 12.0, **changes).parent
    with pytest.raises(UserError, match=f"=phasewise also differ in {name};"):
        read_repetitions(runs, ["averaging"])


def test_what_was_tested_on_the_way_and_observers_are_there(
    compose_settings: Callable[..., Settings],
) -> None:
    settings = compose_settings(*TINY)
    observed = {"swa": {"loss": 1.0, "error": 7.5, "without_bn": {"loss": 1.0, "error": 90.0}}}
    lines = [
        line(1, 20.0),  # without a pass
        line(2, 20.0, 15.0, 12.0),
        line(3, 10.0, 9.5, 9.0, replaced=True, observers=observed),
    ]
    keep(settings, 9.0, metrics=lines)
    way, last = table_of(settings.runs_dir, ["averaging"])
    assert (way["end of"], last["end of"]) == ("epoch 2", "phase 1 (epoch 3)")
    assert (way["after a BN pass"], way["average − after a BN pass"]) == ("15.00", "−3.00")
    assert (way["swa"], last["swa"]) == ("", "7.50")


def test_runs_without_any_average_can_be_compared(made: Made) -> None:
    (row,) = table_of(made(0, 10.0).parent, ["averaging"])
    assert (row["as trained"], row["average"]) == ("10.00", "")


def test_a_run_continued_with_something_else_says_so(made: Made) -> None:
    execution = {**MADE_WITH["execution"], "device_name": "a GPU"}
    second = {**MADE_WITH, "execution": execution}
    folder = made(0, 10.0, result={"provenance": [MADE_WITH, second]})
    (run,) = load_runs(folder.parent)[0].to_dict("records")
    assert run["device_name"] == "a CPU + a GPU"
    assert run["torch"] == "2.11.0"


@pytest.mark.parametrize("name", ["run_id", "test_error", "seed", "path", "gamma"])
def test_what_is_no_setting_is_refused_with_the_choices(made: Made, name: str) -> None:
    runs = made(0, 10.0).parent
    with pytest.raises(UserError, match=rf"^{name}: there is no such setting; .*model\.width"):
        read_repetitions(runs, [name])


def test_nothing_to_compare_and_settings_named_twice_are_refused(
    made: Made, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds no finished run"):
        read_repetitions(tmp_path, ["averaging"])
    runs = made(0, None).parent
    with pytest.raises(UserError, match="every run in it has diverged"):
        read_repetitions(runs, ["averaging"])
    with pytest.raises(UserError, match="averaging: is named twice"):
        read_repetitions(runs, ["averaging", "averaging"])


def test_every_key_of_a_recipe_but_the_seed_tells_runs_apart(
    compose_settings: Callable[..., Settings],
) -> None:
    settings = compose_settings(*TINY, "averaging=rna", "optimizer=lookahead")
    columns = pd.json_normalize(settings.recipe(), sep=".").columns
    assert [name for name in columns if not name.startswith(RECIPE)] == ["seed"]
