"""Provenance identifies the code of a run."""

from pathlib import Path

import pytest
import torch

from phaseavg.runs import provenance


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project folder of two files, without git."""
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    monkeypatch.setattr(provenance, "source_digest", provenance.source_digest.__wrapped__)
    (tmp_path / "phaseavg").mkdir()
    (tmp_path / "phaseavg" / "loop.py").write_text("loop")
    (tmp_path / "train.py").write_text("train")
    return tmp_path


def test_the_source_digest_depends_on_content_and_name(copy: Path) -> None:
    def digest() -> str:
        return provenance.source_digest()

    first = digest()
    (copy / "phaseavg" / "loop.pyc").write_text("a cache is no source")
    (copy / "README.md").write_text("nor is this")
    assert digest() == first
    (copy / "phaseavg" / "loop.py").write_text("other")
    changed = digest()
    (copy / "phaseavg" / "loop.py").rename(copy / "phaseavg" / "main.py")
    renamed = digest()
    (copy / "phaseavg" / "main.py").rename(copy / "phaseavg" / "loop.py")
    (copy / "phaseavg" / "loop.py").write_text("loop")
    assert digest() == first
    assert len({first, changed, renamed}) == 3


def test_without_git_the_commit_is_unknown(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(copy.parent))
    assert provenance.git_state.__wrapped__() == {"commit": None, "modified": None}
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state.__wrapped__() == {"commit": None, "modified": None}


def test_cuda_is_initialised_before_its_peak_memory_is_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []
    monkeypatch.setattr(torch.cuda, "init", lambda: called.append("init"))
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: called.append(f"reset {device}")
    )
    provenance.reset_peak_memory(torch.device("cpu"))
    assert called == []
    provenance.reset_peak_memory(torch.device("cuda", 1))
    assert called == ["init", "reset cuda:1"]


def test_an_option_that_a_record_lacks_is_not_named() -> None:
    options = {"compile": "max-autotune", "graph": False}
    assert provenance.execution_words({"precision": "fp32", **options}) == ["fp32", "compiled"]
