"""Keeping records: from folders and archives, under today's run ids, and nothing by halves."""

import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY
from made_records import configured, keep
from omegaconf import OmegaConf

from phaseavg.config import Settings, check
from phaseavg.errors import UserError
from phaseavg.report.records import read_metrics, read_runs, write_runs
from phaseavg.runs.archive import common_keys, completed, import_records
from phaseavg.runs.identity import run_id
from phaseavg.sweep.cells import Run
from phaseavg.sweep.outcomes import result_of

CONF = REPOSITORY / "conf"
Composed = Callable[..., Settings]


@pytest.fixture
def two(compose_settings: Composed) -> list[Settings]:
    return [compose_settings("preset=demo", f"seed={seed}") for seed in (0, 1)]


def packed(folder: Path, path: Path) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                archive.write(file, f"somewhere/{file.relative_to(folder)}")
    else:
        with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w:gz") as archive:
            archive.add(folder, "somewhere")
    return path


@pytest.mark.parametrize("kind", ["folder", "a.tar.xz", "a.tgz", "a.zip"])
def test_records_come_from_anywhere(two: list[Settings], tmp_path: Path, kind: str) -> None:
    for settings in two:
        keep(settings, 5.0 + settings.seed)
    unended = two[0].runs_dir / "begun"
    unended.mkdir()
    (unended / "config.yaml").write_text("seed: 0\n")
    source = two[0].runs_dir if kind == "folder" else packed(two[0].runs_dir, tmp_path / kind)
    records = tmp_path / "results/records"
    done = import_records(source, records, CONF)
    assert (done.new, done.known, done.renamed, done.unended) == (2, 0, 0, 1)
    assert sorted(path.name for path in records.iterdir()) == sorted(s.run_id for s in two)
    for settings in two:
        files = sorted(path.name for path in (records / settings.run_id).iterdir())
        assert files == ["config.yaml", "metrics.jsonl.xz", "result.json"]
    kept, original = read_runs(records), read_runs(two[0].runs_dir)
    pd.testing.assert_frame_equal(kept.drop(columns="path"), original.drop(columns="path"))
    assert read_metrics(kept)["test_error"].to_list() == [5.0, 5.0, 6.0, 6.0]
    csv = pd.read_csv(write_runs(records))
    assert csv["run_id"].to_list() == sorted(s.run_id for s in two)
    assert csv["test_error"].to_list() == [5.0, 6.0]
    again = import_records(source, records, CONF)
    assert (again.new, again.known) == (0, 2)


def test_a_kept_record_counts_as_finished(two: list[Settings], tmp_path: Path) -> None:
    keep(two[0], 5.0)
    import_records(two[0].runs_dir, two[0].records_dir, CONF)
    shutil.rmtree(two[0].runs_dir)
    assert result_of(Run([], two[0]))["test_error"] == 5.0


@pytest.mark.parametrize(
    "name", ["../../etc/result.json", "/etc/result.json", "a/../../result.json"]
)
@pytest.mark.parametrize("kind", ["a.tar", "a.zip"])
def test_paths_that_climb_out_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    source = tmp_path / kind
    if kind == "a.zip":
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr(name, "{}")
    else:
        with tarfile.open(source, "w") as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    with pytest.raises(UserError, match="leads out of the archive; nothing was imported"):
        import_records(source, tmp_path / "records", CONF)
    assert not (tmp_path / "records").exists()


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a/result.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(UserError, match="/etc/passwd leads out"):
        import_records(tmp_path / "a.tar", tmp_path / "records", CONF)
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "runs/x/result.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(UserError, match="leads out of it"):
        import_records(tmp_path / "runs", tmp_path / "records", CONF)


def test_two_that_differ_are_named_and_nothing_is_imported(
    two: list[Settings], tmp_path: Path
) -> None:
    records = tmp_path / "records"
    keep(two[0], 5.0)
    import_records(two[0].runs_dir, records, CONF)
    elsewhere = tmp_path / "elsewhere"
    keep(two[1], 6.0, where=elsewhere / "1")
    keep(two[0], 5.0, seconds=99.0, where=elsewhere / "0")
    with pytest.raises(UserError, match=r"elsewhere/0 and .* are both .* and differ in result"):
        import_records(elsewhere, records, CONF)
    assert [path.name for path in records.iterdir()] == [two[0].run_id]


DAMAGE = {
    "half a result": ("result.json", '{"status": "fini'),
    "no config": ("config.yaml", None),
    "half the metrics": ("metrics.jsonl", '{"epoch": 1}\n'),
    "metrics of bytes": ("metrics.jsonl", "\x00\x01"),
    "a config of another kind": ("config.yaml", "- 1\n"),
    "no seconds": ("result.json", '{"status": "finished", "epochs": 2, "numerics_version": 1}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_named_and_nothing_is_imported(
    two: list[Settings], tmp_path: Path, damage: str
) -> None:
    name, content = DAMAGE[damage]
    keep(two[0], 5.0)
    folder = keep(two[1], 5.0)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"{two[1].run_id}: a damaged record"):
        import_records(two[0].runs_dir, tmp_path / "records", CONF)
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("kind", ["a.zip", "a.tgz"])
def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_bytes(bytes(65 * 2**20))
    with pytest.raises(UserError, match=r"result\.json has more than 64 MB"):
        import_records(packed(tmp_path / "run", tmp_path / kind), tmp_path / "records", CONF)


def test_metrics_of_another_run_are_refused(two: list[Settings], tmp_path: Path) -> None:
    first, second = (keep(settings, 5.0 + settings.seed) for settings in two)
    shutil.copy(first / "metrics.jsonl", second)
    with pytest.raises(UserError, match=f"{second}: .*metrics and result disagree"):
        import_records(two[0].runs_dir, tmp_path / "records", CONF)


def test_imports_at_the_same_time_take_turns(two: list[Settings], tmp_path: Path) -> None:
    for settings in two:
        keep(settings, 5.0)
    records = tmp_path / "records"
    with ThreadPoolExecutor(4) as pool:  # each opens and locks the folder for itself
        imports = [pool.submit(import_records, two[0].runs_dir, records, CONF) for _ in range(4)]
        done = [each.result() for each in imports]
    assert (sum(d.new for d in done), sum(d.known for d in done)) == (2, 6)
    assert sorted(path.name for path in records.iterdir()) == sorted(s.run_id for s in two)


def test_what_a_record_names_is_imported_only_if_the_user_allows_it(
    two: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "strangers.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        f"Path({str(tmp_path / 'imported')!r}).touch()\n"
        "class Net(nn.Module):\n    pass\n"
    )
    folder = keep(two[0], 5.0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    configured(folder, config | {"model": {"_target_": "strangers.Net"}})
    with pytest.raises(UserError, match=r"_target_=strangers\.Net: a record may only name"):
        import_records(two[0].runs_dir, tmp_path / "records", CONF)
    assert not (tmp_path / "imported").exists()
    assert import_records(two[0].runs_dir, tmp_path / "records", CONF, ["strangers"]).new == 1
    assert (tmp_path / "imported").exists()


def test_a_truncated_archive_is_named(two: list[Settings], tmp_path: Path) -> None:
    keep(two[0], 5.0)
    source = packed(two[0].runs_dir, tmp_path / "a.tar.xz")
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"FROM=.*a\.tar\.xz"):
        import_records(source, tmp_path / "records", CONF)


def of_an_older_schema(settings: Settings, folder: Path) -> str:
    """Write a record from before the recipe had `optimizer_state` and the network `pools`."""
    keep(settings, 5.0, where=folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["optimizer_state"], config["model"]["pools"], config["evaluation"]["batchnorm_every"]
    former = configured(folder, config)
    assert former != settings.run_id
    return former


def test_records_of_an_older_schema_get_todays_run_ids(
    compose_settings: Composed, tmp_path: Path
) -> None:
    settings = compose_settings("model=cnn13", "dataset=cifar10")
    former = of_an_older_schema(settings, tmp_path / "old/x")
    records = tmp_path / "records"
    import_records(tmp_path / "old", records, CONF)
    result = json.loads((records / settings.run_id / "result.json").read_text())
    assert (result["run_id"], result["former_run_ids"]) == (settings.run_id, [former])
    config = yaml.safe_load((records / settings.run_id / "config.yaml").read_text())
    assert (config["model"]["pools"], config["optimizer_state"]) == (2, "keep")


def test_kept_records_are_renamed_when_the_schema_changes(
    compose_settings: Composed, tmp_path: Path
) -> None:
    settings = compose_settings("model=cnn13", "dataset=cifar10")
    records = tmp_path / "records"
    former = of_an_older_schema(settings, tmp_path / "unnamed")
    (tmp_path / "unnamed").rename(records.parent / "staged")
    records.mkdir()
    (tmp_path / "staged").rename(records / former)
    done = import_records(None, records, CONF)
    assert (done.new, done.renamed) == (0, 1)
    assert [path.name for path in records.iterdir()] == [settings.run_id]
    assert import_records(None, records, CONF).renamed == 0


def test_a_renaming_that_was_cut_off_is_finished(
    compose_settings: Composed, tmp_path: Path
) -> None:
    settings = compose_settings("model=cnn13", "dataset=cifar10")
    records = tmp_path / "records"
    former = of_an_older_schema(settings, tmp_path / "old")
    records.mkdir()
    shutil.copytree(tmp_path / "old", records / former)
    import_records(None, records, CONF)
    shutil.copytree(tmp_path / "old", records / former)  # not yet removed
    assert import_records(None, records, CONF).renamed == 1
    assert [path.name for path in records.iterdir()] == [settings.run_id]


def test_what_is_in_the_way_is_named(two: list[Settings], tmp_path: Path) -> None:
    keep(two[0], 5.0)
    (tmp_path / "records" / two[0].run_id).mkdir(parents=True)
    with pytest.raises(UserError, match="is no record and in the way; move it away"):
        import_records(two[0].runs_dir, tmp_path / "records", CONF)


def test_records_of_other_numerics_keep_their_own_id(two: list[Settings], tmp_path: Path) -> None:
    folder = keep(two[0], 5.0)
    result = json.loads((folder / "result.json").read_text())
    result |= {"numerics_version": 0, "run_id": run_id(two[0].recipe(), 0)}
    (folder / "result.json").write_text(json.dumps(result))
    import_records(two[0].runs_dir, tmp_path / "records", CONF)
    (kept,) = (tmp_path / "records").iterdir()
    assert kept.name == result["run_id"] != two[0].run_id


def test_arguments_are_added_that_every_option_with_the_target_has(tmp_path: Path) -> None:
    keys = common_keys(CONF)
    assert keys["phaseavg.models.CNN13"] == {"width", "pools"}
    assert keys["torch.optim.Adam"] == {"lr", "betas", "eps", "weight_decay"}  # amsgrad: one has it
    assert keys["phaseavg.phases.Schedule"] == {"epochs", "factors"}
    nested = {
        "optimizer": {
            "_target_": "phaseavg.optim.Lookahead",
            "k": 5,
            "inner": {"_target_": "torch.optim.SGD", "lr": 0.1},
        }
    }
    done = completed(nested, keys)["optimizer"]
    assert done["inner"] == {
        "_target_": "torch.optim.SGD",
        **{"lr": 0.1, "momentum": 0, "nesterov": False, "weight_decay": 0},
    }
    assert done["alpha"] == 0.5
    with pytest.raises(UserError, match=r"schedule\.factors: is missing"):
        completed({"_target_": "phaseavg.phases.Schedule", "epochs": [1]}, keys, "schedule")


def test_a_config_that_is_none_of_todays_is_named(two: list[Settings], tmp_path: Path) -> None:
    folder = keep(two[0], 5.0)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["depth"] = 3
    configured(folder, config)
    with pytest.raises(UserError, match=r"model\.depth: there is no such key; choices: "):
        import_records(two[0].runs_dir, tmp_path / "records", CONF)


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    from scripts import records

    monkeypatch.setattr(sys, "argv", ["records.py", *arguments])
    return records.main()


def test_the_script_says_what_it_did_and_refuses_in_one_line(
    two: list[Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert typed(monkeypatch, "nowhere") == 2
    assert capsys.readouterr().err == "records.py: FROM=nowhere: there is no such file or folder\n"
    (tmp_path / "a.txt").write_text("text")
    assert typed(monkeypatch, "a.txt") == 2
    assert "is neither a folder nor a tar or zip archive" in capsys.readouterr().err
    assert typed(monkeypatch) == 0  # none yet: an empty list of runs
    assert (tmp_path / "results/runs.csv").read_text() == "run_id\n"
    capsys.readouterr()
    keep(two[0], 5.0)
    assert typed(monkeypatch, str(two[0].runs_dir)) == 0
    said = capsys.readouterr().out
    assert said.startswith("results/records: 1 imported, 0 there already, 0 ")
    assert two[0].run_id in (tmp_path / "results/runs.csv").read_text()


def test_the_records_in_the_repository_are_under_todays_ids(tmp_path: Path) -> None:
    """Also those from before `optimizer_state` was a part of the recipe."""
    done = import_records(REPOSITORY / "results/demo/records", tmp_path / "demo", CONF)
    assert done.new == 8
    with tarfile.open(REPOSITORY / "results/digits/records.tar.xz") as archive:
        archive.extractall(tmp_path / "digits", filter="data")
    done = import_records(tmp_path / "digits/two-threads", tmp_path / "records", CONF)
    assert done.new > 30
    for path in (tmp_path / "records").glob("*/result.json"):
        result = json.loads(path.read_text())
        assert len(result["former_run_ids"]) == 1
        settings = check(OmegaConf.load(path.with_name("config.yaml")))
        assert result["run_id"] == path.parent.name == settings.run_id
