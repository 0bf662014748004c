"""Jobs that Slurm rejects: submitted jobs continue, the others can be resumed."""

from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from phaseavg.errors import NotStarted, UserError
from phaseavg.sweep import slurm


class Executor:
    """Accepts a limited number of jobs, and rejects further jobs like sbatch."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: list[str] = []

    def update_parameters(self, name: str) -> None:
        self.names.append(name)

    def submit(self, *_: Any) -> Any:
        if len(self.names) > self.limit:
            raise RuntimeError("sbatch: error:\nJob violates accounting/QOS policy\n")
        return SimpleNamespace(job_id=str(len(self.names)), paths=SimpleNamespace(stdout="log"))


def launched(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[JobReturn]:
    done = JobReturn(status=JobStatus.COMPLETED, _return_value=1.0)
    monkeypatch.setattr(slurm, "create_executor", lambda _: Executor(limit))
    monkeypatch.setattr(slurm, "load_settings", lambda _, job: SimpleNamespace(run_id=job[0]))
    monkeypatch.setattr(slurm, "jobs_in_queue", dict)
    monkeypatch.setattr(slurm, "job_outcome", lambda *_: done)
    return slurm.launch(SimpleNamespace(params={}), [["a"], ["b"], ["c"]], 0)


def test_submitted_jobs_continue_and_the_others_are_not_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = launched(monkeypatch, 1)
    assert first.status is JobStatus.COMPLETED
    assert [type(other._return_value) for other in others] == [NotStarted] * 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "2 runs were not submitted (Job violates accounting/QOS policy); rerun" in said


def test_the_reason_is_one_line_if_all_jobs_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"^hydra/launcher=slurm: no job was submitted: Job violates accounting/QOS policy$"
    with pytest.raises(UserError, match=message):
        launched(monkeypatch, 0)
