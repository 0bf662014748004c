"""Finished runs are found and reported, and repeated only with rerun=true."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Prompt

import train as train_script
from phaseavg.runs.folder import RunFolder


def test_a_finished_run_is_repeated_only_with_rerun(prompt: Prompt, tmp_path: Path) -> None:
    status, out, err = prompt(*TINY)
    assert (status, err) == (0, "")
    assert "test error" in out.splitlines()[-1]
    assert not (tmp_path / "runs" / "wandb").exists()
    (result,) = tmp_path.glob("runs/*/result.json")
    before = result.read_bytes()
    status, again, _ = prompt(*TINY)
    assert status == 0
    assert "finished before" in again
    assert again.splitlines()[-1] == out.splitlines()[-1]
    assert result.read_bytes() == before
    _, output, _ = prompt(*TINY, "save_weights=true")
    assert "finished before, without final weights: fp32 on " in output
    _, output, _ = prompt("-m", *TINY, "seed=0", "save_weights=true")
    assert "1 finished before, without final weights; add rerun=true to repeat" in output
    _, output, _ = prompt(*TINY, "save_trajectory=epochs", "+averaging@observers.swa=uniform")
    assert "finished before, without save_trajectory=epochs, without observers.swa: " in output
    assert "; add rerun=true to repeat it" in output
    status, forced, _ = prompt(*TINY, "rerun=true")
    assert status == 0
    first, second = (re.match(r"test error \S+", text.splitlines()[-1]) for text in (out, forced))
    assert first.group() == second.group()
    assert result.with_name("result.json.previous").read_bytes() == before


def test_a_finished_run_in_records_dir_reports_its_execution_and_differences(
    prompt: Prompt, tmp_path: Path
) -> None:
    prompt(*TINY)
    (path,) = tmp_path.glob("runs/*/result.json")
    result = json.loads(path.read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    result["date"] = "2026-11-26"
    execution = result["provenance"][-1]["execution"]
    execution |= {"device": "cuda:0", "device_name": "NVIDIA H100", "precision": "bf16"}
    execution |= {"deterministic": False, "channels_last": False}
    path.write_text(json.dumps(result))
    (tmp_path / "runs").rename(tmp_path / "kept")
    where = f"kept/{path.parent.name}: finished before"
    computed = ": bf16, not deterministic on NVIDIA H100, 2026-11-26; add rerun=true to repeat it"
    kept = (*TINY, "records_dir=kept")
    auto = ("execution.device=auto", "execution.deterministic=false", "execution.precision=auto")
    assert f"{where}{computed}" in prompt(*kept, *auto)[1]
    differences = "with execution.precision=bf16, not fp32, with execution.device=cuda, not cpu"
    requested = (*auto[1:2], "execution.precision=fp32", "execution.device=cpu")
    assert f"{where}, {differences}{computed}" in prompt(*kept, *requested)[1]
    (tmp_path / "kept" / path.parent.name / "weights.safetensors").touch()
    _, output, _ = prompt("-m", *kept, *auto, "seed=0", "save_weights=true")
    assert "1 runs requested, 1 unique: 1 finished before, 0 to train" in output
    assert "without final weights" not in output


@pytest.mark.slow
def test_rerun_ignores_the_files_of_the_ended_run(prompt: Prompt, tmp_path: Path) -> None:
    prompt(*TINY, "save_weights=true")
    (folder,) = (tmp_path / "runs").iterdir()
    with RunFolder(folder) as run:  # killed before it could remove its checkpoints
        run.save_checkpoint(40, {"step": 40})
    status, out, _ = prompt(*TINY, "rerun=true")
    assert status == 0
    assert "from step 0;" in out
    assert not (folder / "weights.safetensors").exists()  # of the run before


@pytest.mark.slow
def test_a_run_finished_by_another_process_is_not_repeated(
    prompt: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt(*TINY)
    (result,) = tmp_path.glob("runs/*/result.json")
    content = result.read_bytes()
    result.unlink()
    assemble = train_script.assemble

    def slow_to_load(*arguments: Any) -> Any:
        result.write_bytes(content)  # by the other process
        return assemble(*arguments)

    monkeypatch.setattr(train_script, "assemble", slow_to_load)
    status, out, _ = prompt(*TINY)
    assert status == 0
    assert "finished before" in out
    assert result.read_bytes() == content
