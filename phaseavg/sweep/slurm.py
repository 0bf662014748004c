"""`hydra/launcher=slurm`: submit one Slurm job per run or shared prefix, with submitit.

    python train.py -m table=t1a hydra/launcher=slurm hydra.launcher.partition=gpu

The submitting host and the nodes must share a file system. `runs_dir` and `submitit_folder` must be
the same folders on all hosts, renames must be atomic, new files must be visible within
`SEEN_AFTER_SECONDS`, and `flock` must work across nodes (NFS 4 or later, Lustre with `-o flock`).

`squeue` lists the jobs in the queue, so that accounting (`sacct`) is not needed.
"""

import subprocess
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import OmegaConf
from submitit import AutoExecutor, Job

from phaseavg.cli import say
from phaseavg.config import Settings, check
from phaseavg.errors import NotStarted, OutOfTime, ProcessLost, UserError
from phaseavg.runs.prefixes import prefix_settings
from phaseavg.sweep.composing import composer
from phaseavg.sweep.epoch_times import checkpoint_step
from phaseavg.sweep.launch import failed_job

POLL_SECONDS = 5
SEEN_AFTER_SECONDS = 60

FAULTS = ("FAILED", "OUT_OF_MEMORY", "BOOT_FAIL")
"""Job states of failed runs; in any other final state the run counts as interrupted."""


@dataclass
class Submitted:
    """A job, its name, its run, and the time at which it left the queue without a result."""

    name: str
    settings: Settings
    job: Job[JobReturn]
    gone_since: float | None = None


def launch(launcher: SlurmLauncher, jobs: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Submit one job per run and wait until each job has a result or leaves the queue.

    If Slurm rejects a job, for example at the user's job limit, no further job is submitted. The
    submitted jobs continue.

    Args:
        launcher: the submitit launcher, which a job calls to train its run.
        jobs: the overrides of each job.
        first: the index of the first job.

    Raises:
        UserError: if no job could be submitted.
    """
    submitted: list[Submitted] = []
    returned: dict[int, JobReturn] = {}
    try:
        try:
            submit(launcher, jobs, first, submitted)
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            if not submitted:
                raise UserError(f"hydra/launcher=slurm: no job was submitted: {reason}") from error
            rest = len(jobs) - len(submitted)
            say(f"{rest} jobs were not submitted ({reason}); rerun the same command to resume")
        while len(returned) < len(submitted):
            queued = jobs_in_queue()
            for number, entry in enumerate(submitted):
                if number not in returned and (outcome := job_outcome(entry, queued)):
                    returned[number] = outcome
            if len(returned) < len(submitted):
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        running = [s.job.job_id for n, s in enumerate(submitted) if n not in returned]
        if running:
            say(f"these Slurm jobs continue; to cancel them: scancel {' '.join(running)}")
        raise
    rejected = [failed_job(NotStarted("not submitted"))] * (len(jobs) - len(submitted))
    return [*(returned[number] for number in range(len(submitted))), *rejected]


def submit(
    launcher: SlurmLauncher,
    jobs: Sequence[Sequence[str]],
    first: int,
    submitted: list[Submitted],
) -> None:
    """Submit one job per run, named after the run, and append each job to `submitted`."""
    executor = create_executor(launcher.params)
    for number, overrides in enumerate(jobs, start=first):
        settings = load_settings(launcher, overrides)
        name = f"prefix-{settings.run_id}" if settings.share.prefix else settings.run_id
        executor.update_parameters(name=name)
        arguments = (list(overrides), "hydra.sweep.dir", number, f"job {number}")
        job = executor.submit(launcher, *arguments, Singleton.get_state())
        submitted.append(Submitted(name, settings, job))
        print(f"{name}: Slurm job {job.job_id}, log {job.paths.stdout}", flush=True)


def create_executor(options: Mapping[str, Any]) -> AutoExecutor:
    """Return an executor with the options of `hydra/launcher=submitit_slurm`."""
    general = OmegaConf.structured(BaseQueueConf).keys()
    executor = AutoExecutor(
        folder=options["submitit_folder"],
        cluster="slurm",
        slurm_max_num_timeout=options["max_num_timeout"],
    )
    names = options.keys() - {"submitit_folder", "max_num_timeout", "name"}
    executor.update_parameters(
        **{name if name in general else f"slurm_{name}": options[name] for name in names}
    )
    return executor


def load_settings(launcher: SlurmLauncher, overrides: Sequence[str]) -> Settings:
    """Return the settings of the run or prefix that a job trains."""
    settings = check(composer(launcher.hydra_context, launcher.config)(overrides))
    return prefix_settings(settings) if settings.share.prefix else settings


def _slurm_output(*command: str) -> str | None:
    """Return the output of a Slurm command; None if the command fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def jobs_in_queue() -> list[str] | None:
    """Return the ids of the user's jobs in the queue; None if `squeue` fails."""
    ids = _slurm_output("squeue", "--me", "--noheader", "--format=%A")
    return None if ids is None else ids.split()


def job_state(job_id: str) -> str:
    """Return the final state of a job; UNKNOWN if Slurm no longer stores the job."""
    words = (_slurm_output("scontrol", "--oneliner", "show", "job", job_id) or "").split()
    states = [word.partition("=")[2] for word in words if word.startswith("JobState=")]
    return states[0] if states else "UNKNOWN"


def job_outcome(submitted: Submitted, queued: Container[str] | None) -> JobReturn | None:
    """Return the outcome of a job, given the jobs in the queue; None if the job has not ended."""
    job = submitted.job
    if job.paths.result_pickle.exists():
        try:
            outcome = job.result()
        except Exception as error:  # raised by submitit, for example if the node lacks a module
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            outcome = failed_job(ProcessLost(f"{reason}; log: {job.paths.stderr}"))
        if outcome.status is JobStatus.FAILED and isinstance(outcome._return_value, OutOfTime):
            say(f"{submitted.name}: {outcome._return_value}")
        return outcome
    if queued is None or job.job_id in queued:
        submitted.gone_since = None
        return None
    submitted.gone_since = submitted.gone_since or time.monotonic()
    if time.monotonic() - submitted.gone_since < SEEN_AFTER_SECONDS:
        return None
    state, step = job_state(job.job_id), checkpoint_step(submitted.settings.run_folder)
    about = f"its Slurm job {job.job_id} ended without a result (state {state})"
    if state in FAULTS:
        return failed_job(ProcessLost(f"{about}; log: {job.paths.stderr}"))
    saved = f"interrupted, saved after step {step:,}" if step else "interrupted, nothing saved"
    say(f"{submitted.name}: {saved}: {about}; rerun the same command to resume")
    return failed_job(OutOfTime(f"{saved}: {about}"))
