"""Records are read as plain data; damaged records are reported."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY, Compose, Prompt
from made_records import change_result, make_record, metrics_line, write_config

from phaseavg.config import Settings, check
from phaseavg.identity import run_id
from phaseavg.runs.finished import find_result
from phaseavg.runs.record import read_config
from phaseavg.runs.records import load_runs
from phaseavg.sweep.composing import composing


@pytest.fixture
def two_runs(compose_settings: Compose) -> list[Settings]:
    """Return the settings of two runs that differ only in their seed."""
    return [compose_settings("preset=demo", f"seed={seed}") for seed in (0, 1)]


def test_records_load_with_their_exact_numbers(
    two_runs: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    nested = {"swa": {"loss": 1.0, "error": 7.5, "without_bn": {"loss": 2.0, "error": 9.5}}}
    end = metrics_line(2, weights=0.1 + 0.2, bn=5.5, average=4.5, replaced=True, observers=nested)
    make_record(two_runs[0], 4.5, metrics=[metrics_line(1), end])
    make_record(two_runs[1], None)
    elsewhere = two_runs[0].records_dir
    make_record(two_runs[1], 6.0, where=elsewhere / two_runs[1].run_id)
    (two_runs[0].runs_dir / "begun").mkdir()
    (two_runs[0].runs_dir / "begun" / "config.yaml").write_text("seed: 0\n")
    shutil.copytree(two_runs[0].run_folder, two_runs[0].runs_dir / ".half.part")
    runs, metrics = load_runs(two_runs[0].runs_dir, elsewhere)
    assert capsys.readouterr().err == ""
    assert set(runs["run_id"]) == {settings.run_id for settings in two_runs}
    assert runs["group"].nunique() == 1
    assert sorted(runs["status"]) == ["diverged", "finished", "finished"]
    first = runs.set_index("path").loc[two_runs[0].run_folder]
    assert (first["test_error"], first["seed"], first["model.width"]) == (4.5, 0, 0.125)
    spent = (first["method_seconds"], first["averaging_seconds"], first["seconds"])
    assert spent == (101.0, 1.0, 111.0)
    assert first["averaging"] == "phasewise"
    assert first["averaging._target_"].endswith(".Phasewise")
    assert first["overrides"] == "preset=demo seed=0"
    own = metrics[metrics["path"] == two_runs[0].run_folder]
    assert own["epoch"].tolist() == [1, 2]
    last = own.iloc[-1]
    assert last["weights.error"] == 0.1 + 0.2
    assert last["average.without_bn.error"] == 90.0
    assert (last["observers.swa.error"], last["observers.swa.without_bn.error"]) == (7.5, 9.5)
    assert last["seconds.train"] == 3.0
    assert own["replaced"].isna().tolist() == [True, False]
    assert last["replaced"]


def test_folders_without_runs_give_empty_dataframes(tmp_path: Path) -> None:
    runs, metrics = load_runs(tmp_path, tmp_path / "none")
    assert runs.empty
    assert metrics.empty
    assert {"run_id", "path", "test_error"} <= set(runs)
    assert {"run_id", "epoch", "weights.error", "replaced"} <= set(metrics)


def rewrite(name: str, content: str) -> Callable[[Path], object]:
    """Return a function that overwrites a file of a record."""
    return lambda folder: (folder / name).write_text(content)


def change_seed(folder: Path) -> None:
    """Change the seed in a record's config."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"seed": 7}))


DAMAGE = {
    "half a result": rewrite("result.json", '{"status": "fini'),
    "a result without its keys": rewrite("result.json", '{"status": "finished", "epochs": 2}'),
    "a number that does not follow from the metrics": lambda f: change_result(f, test_error=0.1),
    "another recipe in the result": lambda folder: change_result(folder, recipe={"seed": 3}),
    "no config": lambda folder: (folder / "config.yaml").unlink(),
    "code in the config": rewrite("config.yaml", "!!python/object/apply:os.getcwd []"),
    "another seed in the config": change_seed,
    "half the metrics": rewrite("metrics.jsonl", f"{json.dumps(metrics_line(1))}\n"),
    "half a line of metrics": rewrite("metrics.jsonl", '{"epoch": 1, "ph'),
    "a list as metrics": rewrite("metrics.jsonl", "[]\n[]\n"),
    "no seconds": lambda folder: change_result(folder, seconds={}),
    "no provenance": lambda folder: change_result(folder, provenance=[{}]),
    "no overrides": lambda folder: change_result(folder, overrides=None),
    "nested without end": rewrite("result.json", "[" * 100_000),
}


@pytest.mark.parametrize("content", ["", "[1]", "seed"])
def test_a_config_must_be_a_mapping(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml is not a mapping"):
        read_config(tmp_path)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_reported_and_the_others_load(
    two_runs: list[Settings],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
) -> None:
    intact, folder = (make_record(settings, 5.0 + settings.seed) for settings in two_runs)
    damage(folder)
    runs, metrics = load_runs(two_runs[0].runs_dir)
    error = capsys.readouterr().err
    assert error.startswith(f"{folder}: a damaged record (")
    assert error.count("\n") == 1
    assert runs["path"].tolist() == [intact]
    assert set(metrics["path"]) == {intact}


def test_a_record_in_another_runs_folder_is_reported(
    two_runs: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    make_record(two_runs[0], 5.0, where=two_runs[1].run_folder)
    runs, _ = load_runs(two_runs[0].runs_dir)
    assert runs.empty
    assert f"result.json has run_id {two_runs[0].run_id}" in capsys.readouterr().err


def test_reading_a_record_imports_nothing(
    two_runs: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "malicious.py").write_text(f"open({str(marker)!r}, 'w').close()\nPart = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = make_record(two_runs[0], 5.0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    command = {"_target_": "os.system", "command": f"touch {marker}"}
    bad = config | {"model": {"_target_": "malicious.Part"}, "schedule": command}
    run_id_of_config = write_config(folder, bad)
    folder.rename(two_runs[0].runs_dir / run_id_of_config)
    runs, _ = load_runs(two_runs[0].runs_dir)
    assert runs["model._target_"].tolist() == ["malicious.Part"]
    assert not marker.exists()


def test_records_of_other_numerics_versions_load(two_runs: list[Settings]) -> None:
    folder = make_record(two_runs[0], 5.0)
    old_id = run_id(two_runs[0].recipe(), 0)
    assert old_id != two_runs[0].run_id
    change_result(folder, numerics_version=0, run_id=old_id)
    folder.rename(two_runs[0].runs_dir / old_id)
    runs, _ = load_runs(two_runs[0].runs_dir)
    assert runs["run_id"].tolist() == [old_id]


def test_ended_runs_are_copied_once_and_a_sweep_finds_the_copies(
    two_runs: list[Settings], tmp_path: Path, script: Prompt
) -> None:
    for settings in two_runs:
        (make_record(settings, 5.0 + settings.seed) / "weights.safetensors").write_bytes(b"large")
    unended = two_runs[0].runs_dir / "begun"
    unended.mkdir()
    (unended / "config.yaml").write_text("seed: 0\n")
    runs, records = two_runs[0].runs_dir, two_runs[0].records_dir
    (tmp_path / "links").mkdir()
    (tmp_path / "links/first").symlink_to(two_runs[0].run_folder.resolve())
    for source in (tmp_path / "links", runs, runs):
        assert script("records", source, "--records", records)[0] == 0
    assert sorted(path.name for path in records.iterdir()) == sorted(s.run_id for s in two_runs)
    for settings in two_runs:
        files = sorted(path.name for path in (records / settings.run_id).iterdir())
        assert files == ["config.yaml", "metrics.jsonl", "result.json"]
    csv = pd.read_csv(tmp_path / "runs.csv")
    assert dict(zip(csv["run_id"], csv["test_error"], strict=True)) == {
        two_runs[0].run_id: 5.0,
        two_runs[1].run_id: 6.0,
    }
    shutil.rmtree(runs)  # only the copies are left
    folder, result = find_result(two_runs[0])
    assert (folder.parent, result["test_error"]) == (records, 5.0)


def test_a_record_that_differs_from_its_copy_stops_the_copying(
    two_runs: list[Settings], script: Prompt
) -> None:
    runs, records = two_runs[0].runs_dir, two_runs[0].records_dir
    make_record(two_runs[0], 5.0, seconds=99.0, where=records / two_runs[0].run_id)
    for settings in two_runs:
        make_record(settings, 5.0)
    status, _, error = script("records", runs, "--records", records)
    assert status == 2
    assert f"{two_runs[0].run_folder}: differs from {records / two_runs[0].run_id}" in error
    assert [path.name for path in records.iterdir()] == [two_runs[0].run_id]


STUDIES = sorted((REPOSITORY / "results").glob("**/records"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.parent.name)
def test_the_repositorys_records_equal_their_csv_and_their_overrides_give_their_ids(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, _ = load_runs(study)
    assert len(runs) == len(list(study.iterdir()))
    assert capsys.readouterr().err == ""
    assert (study.parent / "runs.csv").read_text() == runs.drop(columns="path").to_csv(index=False)
    with composing(REPOSITORY / "conf") as (_, compose):
        for run in runs.drop_duplicates("group").to_dict("records"):
            assert check(compose(shlex.split(run["overrides"]))).run_id == run["run_id"]
