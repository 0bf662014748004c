"""If Slurm rejects some jobs, the submitted jobs continue and the others are not started."""

from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobReturn, JobStatus

from phaseavg.errors import NotStarted, UserError
from phaseavg.sweep import slurm


class FakeExecutor:
    """Accepts a limited number of jobs, each named before it is submitted; rejects the others."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.names: list[str] = []

    def update_parameters(self, name: str) -> None:
        self.names.append(name)

    def submit(self, *_: Any) -> Any:
        if len(self.names) > self.limit:
            raise RuntimeError("sbatch: error:\nJob violates accounting/QOS policy\n")
        return SimpleNamespace(job_id=str(len(self.names)), paths=SimpleNamespace(stdout="log"))


def launch_three_jobs(monkeypatch: pytest.MonkeyPatch, accepted: int) -> list[JobReturn]:
    done = JobReturn(status=JobStatus.COMPLETED, _return_value=1.0)
    monkeypatch.setattr(slurm, "create_executor", lambda _: FakeExecutor(accepted))
    share = SimpleNamespace(prefix=None)
    monkeypatch.setattr(
        slurm, "load_settings", lambda _, job: SimpleNamespace(run_id=job[0], share=share)
    )
    monkeypatch.setattr(slurm, "jobs_in_queue", lambda: [])
    monkeypatch.setattr(slurm, "job_outcome", lambda *_: done)
    return slurm.launch(SimpleNamespace(params={}), [["a"], ["b"], ["c"]], 0)


def test_submitted_jobs_continue_and_the_others_are_not_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = launch_three_jobs(monkeypatch, 1)
    assert first.status is JobStatus.COMPLETED
    assert [type(other._return_value) for other in others] == [NotStarted] * 2
    (notice,) = capsys.readouterr().err.splitlines()
    assert "2 jobs were not submitted (Job violates accounting/QOS policy); rerun" in notice


def test_the_rejection_of_all_jobs_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"^hydra/launcher=slurm: no job was submitted: Job violates accounting/QOS policy$"
    with pytest.raises(UserError, match=message):
        launch_three_jobs(monkeypatch, 0)
